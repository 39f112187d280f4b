"""Any map-style data set, with the id of each sample beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset


class IndexedDataset(Dataset[Any]):
    """Adds to each item of a map-style data set its id, the place in that data set.

        loader = DataLoader(IndexedDataset(dataset), batch_size=128, shuffle=True)
        for image, label, index in loader:
            loss = criterion(network(image), label, index)

    A tuple or list `(image, label, ...)` becomes `(image, label, ..., index)`, a mapping gets a new entry, anything
    else becomes the pair `(item, index)`. Ids are those of the data set that is wrapped: `Subset(IndexedDataset(d),
    chosen)` keeps the ids of d, so the criterion needs `num_samples=len(d)`; `IndexedDataset(Subset(d, chosen))` counts
    from 0 to `len(chosen) - 1`.

    Args:
        dataset: has `__getitem__` with 0..N-1 and `__len__`; a `__getitems__` for whole batches is used if it is there.
        key: name of the new entry where items are mappings.

    Raises:
        TypeError: the data set is a stream without ids; `fastlnl.state.KeyTable` serves those.
        ValueError: an item has an entry called `key` already.
    """

    def __init__(self, dataset: Any, key: str = "index") -> None:
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise TypeError(
                f"{type(dataset).__name__} has no __getitem__ and __len__; a stream has no ids to count, take its own "
                "keys and fastlnl.state.KeyTable"
            )
        self.dataset, self.key = dataset, key
        if hasattr(dataset, "__getitems__"):
            self.__getitems__ = self._items  # the loader looks for the name, so it is there only if it can be served

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if index < 0:
            index += len(self)
        return self._with_index(self.dataset[index], index)

    def _items(self, indices: Sequence[int]) -> list[Any]:
        return [self._with_index(item, i) for item, i in zip(self.dataset.__getitems__(indices), indices, strict=True)]

    def _with_index(self, item: Any, index: int) -> Any:
        if isinstance(item, Mapping):
            if self.key in item:
                raise ValueError(
                    f"the items have an entry '{self.key}' already; choose another: IndexedDataset(d, key=...)"
                )
            return {**item, self.key: index}
        return (*item, index) if isinstance(item, (tuple, list)) else (item, index)
