"""The soft label of every sample: an (N, C) table that the row pass moves."""

import hashlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastlnl.errors import LabelError, ShapeError, StateError
from fastlnl.ops.row_loss import TableTarget

Init = Literal["onehot", "zeros", "first_prediction"]
NEVER_WRITTEN = -1.0


def label_fingerprint(label: Tensor) -> str:
    """Hash of given labels (N,), the same for any integer type and device."""
    return hashlib.sha256(label.detach().to("cpu", torch.int64).numpy().tobytes()).hexdigest()[:16]


class LabelMemory(nn.Module):
    """Soft labels of N samples, kept in float32 whatever the network's type, saved with a fingerprint.

    Rows are moved by `row_loss` through `target()`: every occurrence of an id in a batch uses the old row, and the
    occurrence with the highest position is stored. A row that was never written has a negative first entry.

    Args:
        num_samples: N, the length of the data set; ids are 0..N-1.
        num_classes: C.
        label: (N,) given labels. With them rows start as one-hot at once; without, each row starts as the one-hot of
            the label that comes with its first batch. Both give the same bits.
        init: "onehot", "zeros" (the start of ELR; rows then sum to 1 - momentum^n), or "first_prediction" (a row
            starts as the first prediction it meets).

    Raises:
        ShapeError: label is not (N,) of an integer type.
        LabelError: see `check_labels`; labels lie outside [0, C).
    """

    table: Tensor

    def __init__(self, num_samples: int, num_classes: int, label: Tensor | None = None, init: Init = "onehot") -> None:
        super().__init__()
        if init not in ("onehot", "zeros", "first_prediction"):
            raise ValueError(f"init is {init!r}; expected 'onehot', 'zeros' or 'first_prediction'")
        if num_samples < 1 or num_classes < 1:
            raise ShapeError(f"a label memory of {num_samples} x {num_classes} was asked for; both must be at least 1")
        self.num_samples, self.num_classes, self.init = num_samples, num_classes, init
        self.fingerprint = None if label is None else label_fingerprint(label)
        device = None if label is None else label.device
        start = 0.0 if init == "zeros" else NEVER_WRITTEN
        self.register_buffer("table", torch.full((num_samples, num_classes), start, device=device))
        if label is not None:
            self._start_from(label)

    def _start_from(self, label: Tensor) -> None:
        if label.shape != (self.num_samples,) or label.is_floating_point() or label.dtype == torch.bool:
            raise ShapeError(
                f"label is {tuple(label.shape)} {label.dtype}; expected ({self.num_samples},) of an integer type"
            )
        check_labels(label, self.num_classes)
        if self.init == "onehot":
            self.table.zero_().scatter_(1, label.long()[:, None], 1.0)

    def target(self, use: float, keep: float) -> TableTarget:
        """The memory as a source of targets for `row_loss`; see `TableTarget`."""
        return TableTarget(self.table, use, keep, self.init == "onehot")

    def labels(self) -> Tensor:
        """(N,) int64, the class each row holds highest; -1 where a row was never written."""
        return torch.where(self.table[:, 0] < 0, -1, self.table.argmax(1))

    def extra_repr(self) -> str:
        return f"num_samples={self.num_samples}, num_classes={self.num_classes}, init={self.init!r}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LabelMemory":
        """Follow the device; keep float32 where `.half()` or `.to(bfloat16)` would round the averages away."""
        moved = fn(self.table)
        self.table = moved if moved.dtype == torch.float32 else self.table.to(moved.device)
        return self

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "init": self.init,
            "label": self.fingerprint,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.fingerprint = self.fingerprint or state["label"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuse a table of other data before anything is overwritten."""
        saved = state_dict.get(prefix + "_extra_state")
        if saved is not None:
            here = self.get_extra_state()
            for key in ("num_samples", "num_classes", "init"):
                if saved[key] != here[key]:
                    raise StateError(
                        f"the saved label memory has {key} {saved[key]} but this one has {here[key]}; "
                        "build the criterion for the data the checkpoint was made with"
                    )
            if None not in (saved["label"], here["label"]) and saved["label"] != here["label"]:
                raise StateError(
                    f"the saved label memory was made with other given labels (hash {saved['label']}, here "
                    f"{here['label']}); resume with the same data set, noise and noise seed"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


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
