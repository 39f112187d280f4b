"""The soft label of every sample: a table of N rows that the row pass moves."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastlnl.cpu.pages import advise
from fastlnl.errors import BackendError, LabelError, ShapeError, StateError
from fastlnl.ops.row_loss import Storage, TableTarget
from fastlnl.ops.row_loss.storage import decode, encode, one_hot, row_key, topk_parts

Init = Literal["onehot", "zeros", "first_prediction"]
BLOCK = 1 << 22  # elements of the rows that are decoded at a time


def label_fingerprint(label: Tensor) -> str:
    """Hash of given labels (N,), the same for any integer type and device."""
    return hashlib.sha256(label.detach().to("cpu", torch.int64).numpy().tobytes()).hexdigest()[:16]


class LabelMemory(nn.Module):
    """Soft labels of N samples, kept in their own format whatever the network's type, saved with a fingerprint.

    Rows are moved by `row_loss` through `target()`: every occurrence of an id in a batch uses the old row, and the
    occurrence with the highest position is stored. A row that was never written has a negative first entry.

    | storage | bytes a sample | C = 100 | C = 21,841 |
    |---|---|---|---|
    | "float32" | 4 C | 400 | 87,364 |
    | "bfloat16", "float16" | 2 C | 200 | 43,682 |
    | "uint8" (steps of 1/254) | C | 100 | 21,841 |
    | "topk:16" (up to 65,536 classes) | 4 K + 2 | 66 | 66 |

    topk keeps the K likeliest classes and the mass of all others, which share it evenly. A class that enters the top K
    starts from its share and its part of the prediction; the mass of one that leaves goes to the others. While at most
    K classes have mass, a row is that of float16. See `fastlnl.ops.row_loss.storage` for the rounding.

    Args:
        num_samples: N, the length of the data set; ids are 0..N-1.
        num_classes: C.
        label: (N,) given labels. With them rows start as one-hot at once; without, each row starts as the one-hot of
            the label that comes with its first batch. Both give the same bits.
        init: "onehot", "zeros" (the start of ELR; rows then sum to 1 - momentum^n), or "first_prediction" (a row
            starts as the first prediction it meets).
        storage: format of the rows, see above.
        seed: of the rounding, in [0, 2^32).
        device: of the table; that of the labels by default.
        pin: keep the table in pinned host memory, also when the module moves to a GPU, whose kernels then reach it
            across the bus: for tables larger than the GPU. Needs a CUDA device; not yet run on one.

    Raises:
        ShapeError: label is not (N,) of an integer type.
        LabelError: see `check_labels`; labels lie outside [0, C).
        ValueError: init, storage or seed is none of these.
        BackendError: pin without a CUDA device.
    """

    table: Tensor
    step: Tensor | None

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        label: Tensor | None = None,
        init: Init = "onehot",
        storage: str = "float32",
        seed: int = 0,
        device: torch.device | str | None = None,
        pin: bool = False,
    ) -> None:
        super().__init__()
        if init not in ("onehot", "zeros", "first_prediction"):
            raise ValueError(f"init is {init!r}; expected 'onehot', 'zeros' or 'first_prediction'")
        if num_samples < 1 or num_classes < 1:
            raise ShapeError(f"a label memory of {num_samples} x {num_classes} was asked for; both must be at least 1")
        if not 0 <= seed < 1 << 32:
            raise ValueError(f"seed is {seed}; expected a whole number in [0, 2^32)")
        self.num_samples, self.num_classes, self.init, self.seed, self.pin = num_samples, num_classes, init, seed, pin
        self.storage = Storage.parse(storage, num_classes)
        self.fingerprint = None if label is None else label_fingerprint(label)
        if device is None and label is not None and not pin:
            device = label.device
        shape = (num_samples, self.storage.width(num_classes))
        table = advise(torch.empty(shape, dtype=self.storage.dtype, device=device)).fill_(self.storage.never_written)
        self.register_buffer("table", _pinned(table) if pin else table)
        step = torch.zeros((), dtype=torch.int64, device=device) if self.storage.lossy else None
        self.register_buffer("step", step)
        if init == "zeros":
            zeros = torch.zeros(1, num_classes, device=device)
            self.table.copy_(encode(self.storage, zeros, torch.zeros(1, 2, dtype=torch.int64, device=device)))
        if label is not None:
            self._start_from(label)

    def _start_from(self, label: Tensor) -> None:
        if label.shape != (self.num_samples,) or label.is_floating_point() or label.dtype == torch.bool:
            raise ShapeError(
                f"label is {tuple(label.shape)} {label.dtype}; expected ({self.num_samples},) of an integer type"
            )
        check_labels(label, self.num_classes)
        if self.init == "onehot":
            for rows in self._blocks(self.table.shape[1]):
                self.table[rows] = one_hot(self.storage, label[rows].to(self.table.device).long(), self.num_classes)

    def target(self, use: float, keep: float) -> TableTarget:
        """The memory as a source of targets for `row_loss`; see `TableTarget`."""
        return TableTarget(self.table, use, keep, self.init == "onehot", self.storage, self.seed, self.step)

    @property
    def bytes_per_sample(self) -> int:
        return self.table.shape[1] * self.table.element_size()

    def rows(self, index: Tensor) -> Tensor:
        """(n, C) float32, the soft labels of the samples `index` (n,); -1 where a row was never written."""
        records = self.table[index.long().to(self.table.device)]
        rows = decode(self.storage, records, self.num_classes)
        return torch.where(rows[:, :1] < 0, -1.0, rows)

    def labels(self) -> Tensor:
        """(N,) int64, the class each row holds highest, of equal ones the lowest; -1 where it holds nothing yet."""
        width = self.table.shape[1]
        return torch.cat([self._highest(self.table[rows]) for rows in self._blocks(width)])

    def _highest(self, records: Tensor) -> Tensor:
        if self.storage.kind != "topk":
            value, label = decode(self.storage, records, self.num_classes).max(1)
            return torch.where(value > 0, label, -1)
        ids, values, rest = topk_parts(self.storage, records)
        value = values.amax(1, keepdim=True)
        label = torch.where(values == value, ids, self.num_classes).amin(1)
        # After rounding a class that shares the rest can be ahead of those that are kept; the lowest is the first gap.
        places = torch.arange(self.storage.kept, device=ids.device)
        other = (ids.sort(1).values == places).cumprod(1).sum(1)
        share = rest * (1.0 / max(self.num_classes - self.storage.kept, 1))
        shared = (share > value) | ((share == value) & (other < label)[:, None])
        label = torch.where(shared[:, 0] & (other < self.num_classes), other, label)
        return torch.where(torch.maximum(value, share)[:, 0] > 0, label, -1)

    def _blocks(self, width: int) -> Iterator[slice]:
        count = max(1, BLOCK // width)
        for first in range(0, self.num_samples, count):
            yield slice(first, min(first + count, self.num_samples))

    def extra_repr(self) -> str:
        sizes = f"num_samples={self.num_samples}, num_classes={self.num_classes}"
        return f"{sizes}, init={self.init!r}, storage='{self.storage}'"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LabelMemory":
        """Follow the device, unless pinned; keep the type where `.half()` would round the averages away."""
        if self.step is not None:
            self.step = fn(self.step)
        if not self.pin:
            moved = fn(self.table)
            self.table = moved if moved.dtype == self.table.dtype else self.table.to(moved.device)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.pin:  # a copy is not pinned of itself
            self.table = _pinned(self.table)

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "init": self.init,
            "storage": str(self.storage),
            "seed": self.seed,
            "label": self.fingerprint,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.fingerprint = self.fingerprint or state["label"]

    def _check_saved(self, saved: dict[str, Any], keys: tuple[str, ...]) -> None:
        """Refuse the state of other data, or of a memory of another kind."""
        here = self.get_extra_state()
        for key in keys:
            if saved[key] != here[key]:
                advice = "build the criterion for the data the checkpoint was made with"
                if key == "storage":
                    advice = "build it with that storage, or convert the rows with memory.load_converted(state_dict)"
                elif key == "seed":
                    advice = "resume with the seed the run was started with"
                raise StateError(
                    f"the saved label memory has {key} {saved[key]} but this one has {here[key]}; {advice}"
                )
        if None not in (saved["label"], here["label"]) and saved["label"] != here["label"]:
            raise StateError(
                f"the saved label memory was made with other given labels (hash {saved['label']}, here "
                f"{here['label']}); resume with the same data set, noise and noise seed"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuse a table of other data before anything is overwritten."""
        saved = state_dict.get(prefix + "_extra_state")
        if saved is not None:
            saved = {"storage": "float32", "seed": self.seed} | saved  # a state from before there were storages
            self._check_saved(saved, ("num_samples", "num_classes", "init", "storage", "seed"))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def load_converted(self, state_dict: Mapping[str, Any], prefix: str = "") -> None:
        """Load the state of a label memory of any storage, its rows rewritten in this one's, block by block.

        Args:
            state_dict: as `state_dict()` of a LabelMemory or of a module that holds one.
            prefix: of the memory's keys there, "memory." in the state of a criterion.

        Raises:
            StateError: the state is that of other data, or starts its rows otherwise.
        """
        saved = {"storage": "float32"} | state_dict[prefix + "_extra_state"]
        self._check_saved(saved, ("num_samples", "num_classes", "init"))
        source, table = Storage.parse(saved["storage"], self.num_classes), state_dict[prefix + "table"]
        for rows in self._blocks(self.num_classes):
            place = torch.arange(rows.start, rows.stop, device=self.table.device)
            dense = decode(source, table[rows].to(self.table.device), self.num_classes)
            key = None if self.step is None else row_key(self.seed, self.step.to(place.device), place)
            records = encode(self.storage, dense.clamp(min=0.0), key)
            self.table[rows] = torch.where(dense[:, :1] < 0, self._blank(), records)
        if self.step is not None:
            self.step.add_(1)
        self.set_extra_state(saved)

    def _blank(self) -> Tensor:
        return torch.tensor(self.storage.never_written, dtype=self.table.dtype, device=self.table.device)


def _pinned(table: Tensor) -> Tensor:
    try:
        return table.pin_memory()
    except RuntimeError as error:
        raise BackendError("pin=True keeps the table in pinned host memory, which needs a CUDA device") from error


def check_labels(label: Tensor, num_classes: int) -> None:
    """Raise LabelError unless all labels (N,) lie in [0, C). Reads from the device; for set-up, not for a step."""
    wrong = ((label < 0) | (label >= num_classes)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        hint = "; are labels 1-based?" if int(label.max()) == num_classes and int(label.min()) >= 1 else ""
        raise LabelError(
            f"label of sample {first} is {int(label[first])} but there are {num_classes} classes "
            f"(0..{num_classes - 1}){hint}"
        )
