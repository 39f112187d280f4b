"""The module around a loss of `define_loss`: reduction, checks, epochs."""

import os
from typing import Any, Literal

from torch import Tensor, nn

from fastlnl.errors import LabelError
from fastlnl.losses.fused import fused_loss
from fastlnl.ops.row_loss import REDUCTIONS, LossDefinition, new_error_word

Reduction = Literal["mean", "sum", "none"]


class Criterion(nn.Module):
    """Any loss of `define_loss` as a module.

    Args:
        definition: the loss.
        reduction: "mean" over the batch (with weights too), "sum", or "none" for (B,).
        parameters: of the loss; its defaults where not given.
    """

    errors: Tensor

    def __init__(self, definition: LossDefinition, *, reduction: Reduction = "mean", **parameters: float) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction is {reduction!r}; expected one of {', '.join(REDUCTIONS)}")
        self.definition, self.reduction = definition, reduction
        self.parameters_ = definition.parameters(**parameters)
        self.epoch = 0
        self._classes = 0
        self._debug = os.environ.get("FASTLNL_DEBUG", "0") == "1"
        self.register_buffer("errors", new_error_word(), persistent=False)

    def forward(
        self,
        logits: Tensor,
        label: Tensor | None = None,
        index: Tensor | None = None,
        weight: Tensor | None = None,
        target: Tensor | None = None,
    ) -> Tensor:
        """Loss of a batch.

        Args:
            logits: (B, C), float16, bfloat16 or float32, any strides.
            label: (B,) given labels, any integer type.
            index: (B,) sample ids; not looked at without a label memory.
            weight: (B,) factor of each sample; may require a gradient.
            target: (B, C) soft labels, for losses that take them.

        Returns:
            () float32, or (B,) with reduction "none".
        """
        return self._loss(logits, label, self.definition, self.parameters_, weight=weight, target=target)

    def _loss(
        self,
        logits: Tensor,
        label: Tensor | None,
        definition: LossDefinition,
        parameters: tuple[float, ...],
        **given: Any,
    ) -> Tensor:
        errors = self.errors
        if errors.device != logits.device:
            self.errors = errors = errors.to(logits.device)
        self._classes = logits.shape[-1]
        loss = fused_loss(logits, label, definition, parameters, reduction=self.reduction, errors=errors, **given)
        if self._debug:
            self.check()
        return loss

    def end_epoch(self) -> None:
        """Raise what went wrong in this epoch (`check`), then count it. Reads from the device once."""
        self.check()
        self.epoch += 1

    def check(self) -> None:
        """Raise LabelError if a label or id was out of range since the last check; names the first one."""
        kind, position, sample, value = self.errors.tolist()
        if kind == 0:
            return
        self.errors.zero_()
        if kind == 1:
            hint = "; are labels 1-based?" if value == self._classes else ""
            raise LabelError(
                f"label of sample {sample} (position {position} in its batch) is {value} but logits has "
                f"{self._classes} classes (0..{self._classes - 1}){hint}"
            )
        raise LabelError(
            f"index at position {position} of a batch is {value} but the label memory has {self._samples()} samples "
            f"(0..{self._samples() - 1}); pass each sample's id in the data set, not its place in the batch"
        )

    def _samples(self) -> int:
        return 0

    def get_extra_state(self) -> dict[str, Any]:
        return {"epoch": self.epoch}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]

    def extra_repr(self) -> str:
        named = zip(self.definition.defaults, self.parameters_, strict=True)
        return ", ".join([*(f"{name}={value:g}" for name, value in named), f"reduction={self.reduction!r}"])


def require_inside(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; expected a value in [{low}, {high}]")
