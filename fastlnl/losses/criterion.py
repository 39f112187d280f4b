"""The module around a loss of `define_loss`: reduction, checks, epochs, the dynamics of its samples."""

import os
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastlnl.errors import ShapeError
from fastlnl.losses.fused import fused_loss
from fastlnl.ops.row_loss import REDUCTIONS, LossDefinition, new_error_word
from fastlnl.state.dynamics import SampleDynamics
from fastlnl.state.recorded import raise_recorded

Reduction = Literal["mean", "sum", "none"]


class Criterion(nn.Module):
    """Any loss of `define_loss` as a module.

    With `dynamics` every call enters its batch there, from the statistics of the same pass over the logits. Call it
    once a step then, outside of a checkpointed (recomputed) region: a second call would be a second presentation.

    Args:
        definition: the loss.
        reduction: "mean" over the batch (with weights too), "sum", or "none" for (B,).
        dynamics: what is remembered of each sample; saved with the criterion, its epoch ends with the criterion's.
        parameters: of the loss; its defaults where not given.
    """

    errors: Tensor

    def __init__(
        self,
        definition: LossDefinition,
        *,
        reduction: Reduction = "mean",
        dynamics: SampleDynamics | None = None,
        **parameters: float,
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction is {reduction!r}; expected one of {', '.join(REDUCTIONS)}")
        self.definition, self.reduction = definition, reduction
        self.parameters_ = definition.parameters(**parameters)
        self.epoch = 0
        self._classes = 0
        self._debug = os.environ.get("FASTLNL_DEBUG", "0") == "1"
        self.register_buffer("errors", new_error_word(), persistent=False)
        self.dynamics = dynamics

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
            index: (B,) sample ids; not looked at without a label memory or dynamics.
            weight: (B,) factor of each sample; may require a gradient.
            target: (B, C) soft labels, for losses that take them.

        Returns:
            () float32, or (B,) with reduction "none".

        Updates: dynamics.
        """
        return self._loss(logits, label, self.definition, self.parameters_, index, weight=weight, target=target)

    def _loss(
        self,
        logits: Tensor,
        label: Tensor | None,
        definition: LossDefinition,
        parameters: tuple[float, ...],
        index: Tensor | None = None,
        **given: Any,
    ) -> Tensor:
        errors = self.errors
        if errors.device != logits.device:
            self.errors = errors = errors.to(logits.device)
        if self._classes != (classes := logits.shape[-1]):  # setting an attribute of a module costs a microsecond
            self._classes = classes
        if (dynamics := self.dynamics) is not None:
            if index is None or label is None:
                raise ShapeError("index or label is None; the dynamics need the ids and labels (B,) of the batch")
            refuse_recomputation("the dynamics would count a presentation twice")
            given |= {"index": index, "book": dynamics}
        elif given.get("memory") is not None:
            given["index"] = index
        loss = fused_loss(logits, label, definition, parameters, reduction=self.reduction, errors=errors, **given)
        if self._debug:
            self.check()
        return loss

    def end_epoch(self) -> None:
        """Raise what went wrong in this epoch (`check`), then count it and end the epoch of the dynamics, too.

        Reads from the device; `dynamics.summary` then tells of the epoch.
        """
        self.check()
        if self.dynamics is not None:
            self.dynamics.end_epoch()
        self.epoch += 1

    def check(self) -> None:
        """Raise LabelError if a label or id was out of range since the last check; names the first one."""
        try:
            raise_recorded(self.errors, self._classes, self._samples(), "the label memory has")
        finally:
            if self.dynamics is not None:
                self.dynamics.check()

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


def refuse_recomputation(consequence: str) -> None:
    """Raise RuntimeError while a backward pass runs, where activation checkpointing calls a second time."""
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "the criterion was called while a backward pass runs, as activation checkpointing does when it "
            f"recomputes; checkpoint the network only, or {consequence}"
        )
