"""Rows for samples that are known by a name: file names, URLs, the keys of a stream."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastlnl.errors import LabelError, StateError


class KeyTable(nn.Module):
    """Gives every key a row, 0..N-1, in the order in which keys are first seen, and remembers it in the state_dict.

        keys = KeyTable(capacity=1_000_000)
        criterion = ALR(num_samples=keys.capacity, num_classes=1000)
        for image, label, name in stream:
            loss = criterion(network(image), label, keys.rows(name))

    The table lives in the process that trains. Workers hand the keys through; rows that each worker counted by
    itself would not agree. On several ranks give all of them the same `keys` at the start.

    Args:
        keys: known keys, strings or integers, each once; their rows are their places. With `capacity` None no others
            are accepted.
        capacity: N, how many keys there may be; rows beyond `len(keys)` go to new ones.

    Raises:
        ValueError: neither keys nor capacity; a key comes twice; more keys than capacity.
    """

    def __init__(self, keys: Iterable[Hashable] | None = None, capacity: int | None = None) -> None:
        super().__init__()
        if keys is None and capacity is None:
            raise ValueError("KeyTable got neither keys nor a capacity; pass one, so that the state can be sized")
        known = list(keys or ())
        self._row = {key: row for row, key in enumerate(known)}
        if len(self._row) != len(known):
            twice = next(key for row, key in enumerate(known) if self._row[key] != row)
            raise ValueError(f"key {twice!r} comes more than once; every sample needs a key of its own")
        self.capacity = len(known) if capacity is None else capacity
        if len(known) > self.capacity:
            raise ValueError(f"there are {len(known)} keys but capacity is {self.capacity}; raise the capacity")

    def rows(self, keys: Sequence[Hashable]) -> Tensor:
        """(B,) int64 rows of the keys, on the CPU; new keys take the next free rows.

        Raises:
            LabelError: no row is left for a new key. Keys before it in the batch have their rows by then.
        """
        found = []
        for key in keys:
            row = self._row.setdefault(key, len(self._row))
            if row >= self.capacity:
                del self._row[key]
                raise LabelError(
                    f"key {key!r} is new but all {self.capacity} rows are taken; build the table and the criterion "
                    "with a larger capacity"
                )
            found.append(row)
        return torch.tensor(found, dtype=torch.int64)

    def __len__(self) -> int:
        """Keys seen so far."""
        return len(self._row)

    def __iter__(self) -> Iterator[Hashable]:
        """The keys in the order of their rows."""
        return iter(self._row)

    def extra_repr(self) -> str:
        return f"{len(self)} keys, capacity={self.capacity}"

    def get_extra_state(self) -> dict[str, Any]:
        return {"keys": list(self._row), "capacity": self.capacity}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the saved rows; keys that were here before must have the same ones."""
        if len(state["keys"]) > self.capacity:
            raise StateError(
                f"the saved table has {len(state['keys'])} keys but this one has room for {self.capacity}; build it "
                f"with capacity={state['capacity']}"
            )
        saved = {key: row for row, key in enumerate(state["keys"])}
        for key, row in self._row.items():
            if saved.get(key) != row:
                there = f"row {saved[key]}" if key in saved else "no row"
                raise StateError(
                    f"key {key!r} has row {row} here but {there} in the saved table; load the state before the first "
                    "batch, into a table built with the same keys"
                )
        self._row = saved
