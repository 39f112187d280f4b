"""The criterion of IDO's second stage: two views of a batch, weighted by each sample's count of wrong events."""

import os
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastlnl.errors import ShapeError
from fastlnl.losses.criterion import refuse_recomputation
from fastlnl.losses.fused import _keeps_graph
from fastlnl.ops.doors import describe
from fastlnl.ops.row_loss import new_error_word
from fastlnl.ops.scale_rows import scale_rows_
from fastlnl.ops.two_view_loss import (  # noqa: F401
    COUNTER_ORDERS,
    ENTROPY_SCALES,
    TwoViewOutput,
    operator,
    two_view_loss,
)
from fastlnl.state.fingerprint import check_fingerprint
from fastlnl.state.label_memory import check_labels, label_fingerprint
from fastlnl.state.recorded import raise_recorded


class TwoViewLoss(nn.Module):
    """tau (CE(zw, y) + CE(zs, y)) + eps mse(zw, zs) + (1 - tau) H(mean of the views), averaged over the batch.

    tau and eps come from `table` at the sample's given label and its count of wrong events, which every call moves
    first, see `ops.two_view_loss`. The table starts as ones, plain cross-entropy of both views with consistency, until
    `set_table`. Counts of an earlier stage are handed over by `criterion.wrong_count.copy_(dynamics.wrong_events)`.
    Nothing waits for the device in a step. Call it once a step, outside of a checkpointed (recomputed) region: a second
    call would count the events twice.

    Args:
        num_samples, num_classes: N and C; ids are 0..N-1.
        label: (N,) given labels, only for the fingerprint that is saved with the state.
        max_count: K - 1, the last count that has weights of its own; E1 + 2 E2 epochs cannot count beyond.
        per_class: weights for each given label, or one table for all.
        entropy_scale: factor of the entropy of a row: "none" is 1, "sample" the highest probability of its mean view,
            "batchmean" the mean of that over the batch.
        counter_order: "before_weights" or "after_weights", when a batch's events are counted.

    Raises:
        ShapeError, LabelError: sizes below 1; label is not (N,) in [0, C).
        ValueError: an option is none of these.
    """

    wrong_count: Tensor  # (N,) int32
    table: Tensor  # (G, K, 2) float32, tau and eps
    errors: Tensor

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        label: Tensor | None = None,
        *,
        max_count: int,
        per_class: bool = True,
        entropy_scale: Literal["none", "sample", "batchmean"] = "none",
        counter_order: Literal["before_weights", "after_weights"] = "before_weights",
    ) -> None:
        super().__init__()
        if min(num_samples, num_classes) < 1 or max_count < 0:
            raise ShapeError(
                f"a criterion of {num_samples} samples, {num_classes} classes, counts up to {max_count}; expected at "
                "least 1, 1 and 0"
            )
        for name, value, known in (
            ("entropy_scale", entropy_scale, ENTROPY_SCALES),
            ("counter_order", counter_order, COUNTER_ORDERS),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
        if label is not None:
            if label.shape != (num_samples,):
                raise ShapeError(f"label is {tuple(label.shape)}; expected ({num_samples},)")
            check_labels(label, num_classes)
        device = None if label is None else label.device
        self.num_samples, self.num_classes, self.max_count = num_samples, num_classes, max_count
        self.per_class, self.entropy_scale, self.counter_order = per_class, entropy_scale, counter_order
        self.fingerprint = None if label is None else label_fingerprint(label)
        self.epoch, self.table_is_empty = 0, True  # until `set_table`
        self._debug = os.environ.get("FASTLNL_DEBUG", "0") == "1"
        groups = num_classes if per_class else 1
        self.register_buffer("wrong_count", torch.zeros(num_samples, dtype=torch.int32, device=device))
        self.register_buffer("table", torch.ones(groups, max_count + 1, 2, device=device))
        self.register_buffer("errors", new_error_word(device), persistent=False)

    def forward(self, logits_weak: Tensor, logits_strong: Tensor, label: Tensor, index: Tensor) -> Tensor:
        """Mean loss of a batch.

        Args:
            logits_weak, logits_strong: (B, C) of both views, float16, bfloat16 or float32, any strides.
            label: (B,) given labels. index: (B,) sample ids; -1 is padding.

        Returns:
            () float32.

        Updates: wrong_count.
        """
        refuse_recomputation("the wrong events of a batch would be counted twice")
        if logits_weak.shape[-1] != self.num_classes:
            raise ShapeError(
                f"logits_weak is {describe(logits_weak)} but the criterion has {self.num_classes} classes; build it "
                "with num_classes equal to the network's outputs"
            )
        state: dict[str, Any] = self._buffers  # as attributes of a module they cost about 1 us each
        loss = fused_two_view_loss(
            logits_weak, logits_strong, label, index, state["wrong_count"], state["table"],
            entropy_scale=self.entropy_scale, counter_order=self.counter_order, errors=state["errors"],
        )  # fmt: skip
        if self._debug:
            self.check()
        return loss

    @torch.no_grad()
    def set_table(self, table: Tensor) -> None:
        """New weights, (G, K, 2) of any floating type: clean probability and similarity weight by group and count.

        A pooled table may be (K, 2). The weights are copied, so the table keeps its place in memory. Fewer counts than
        K are allowed: those beyond take the last row. Updates: table.
        """
        groups, depth, _ = self.table.shape
        if table.dim() == 2:
            table = table[None]
        fits = table.dim() == 3 and table.shape[0] == groups and 1 <= table.shape[1] <= depth and table.shape[2] == 2
        if not fits or not table.is_floating_point():
            raise ShapeError(f"table is {describe(table)}; expected ({groups}, 1..{depth}, 2) of a floating type")
        self.table[:, : table.shape[1]] = table
        self.table[:, table.shape[1] :] = table[:, -1:]
        self.table_is_empty = False

    def clean_prob(self, label: Tensor) -> Tensor:
        """(N,) float32, what the table says of every sample's count now; label is (N,), the given labels."""
        group = label.to(self.table.device).long() if self.per_class else 0
        return self.table[group, self.wrong_count.long().clamp(0, self.max_count), 0]

    def end_epoch(self) -> None:
        """Raise what went wrong in this epoch (`check`), then count it. Reads from the device."""
        self.check()
        self.epoch += 1

    def check(self) -> None:
        """Raise LabelError if a label or id was out of range since the last check; names the first one."""
        raise_recorded(self.errors, self.num_classes, self.num_samples, "the criterion has")

    def extra_repr(self) -> str:
        options = {name: value for name, value in self._options().items() if name != "label"}
        options |= {"entropy_scale": self.entropy_scale, "counter_order": self.counter_order}
        return ", ".join(f"{name}={value!r}" for name, value in options.items())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TwoViewLoss":
        """Follow the device; the weights stay float32."""
        before = self.table
        super()._apply(fn, recurse)
        if self.table.dtype != before.dtype:
            self.table = before.to(self.table.device)
        return self

    def _options(self) -> dict[str, Any]:
        return {
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "max_count": self.max_count,
            "per_class": self.per_class,
            "label": self.fingerprint,
        }

    def get_extra_state(self) -> dict[str, Any]:
        return self._options() | {"epoch": self.epoch, "table_is_empty": self.table_is_empty}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.epoch, self.table_is_empty = state["epoch"], state["table_is_empty"]
        self.fingerprint = self.fingerprint or state["label"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuse the counts of other data before anything is overwritten."""
        saved = state_dict.get(prefix + "_extra_state")
        if saved is not None:
            check_fingerprint("two-view criterion", saved, self._options())
        super()._load_from_state_dict(state_dict, prefix, *args)


def fused_two_view_loss(
    logits_weak: Tensor, logits_strong: Tensor, label: Tensor, index: Tensor, wrong_count: Tensor, table: Tensor, *,
    entropy_scale: str = "none", counter_order: str = "before_weights", errors: Tensor,
) -> Tensor:  # fmt: skip
    """Mean of `two_view_loss` over the batch as a differentiable function of both views; arguments and errors as there.

    float16 logits keep the gradient undivided until backward, as in `fused_loss`. Updates: wrong_count, errors.
    """
    scale = 1.0 / max(len(logits_weak), 1)
    now, later = (1.0, scale) if logits_weak.dtype == torch.float16 else (scale, 1.0)
    differentiable = torch.is_grad_enabled() and (logits_weak.requires_grad or logits_strong.requires_grad)
    if torch.compiler.is_compiling():
        loss, dlogits, _ = torch.ops.fastlnl.two_view_loss(
            logits_weak.detach(), logits_strong.detach(), label, index, wrong_count, table, entropy_scale,
            counter_order, now, "mean", errors)  # fmt: skip
        if not differentiable:
            return loss
        compiled: Tensor = _WithGradientsCompiled.apply(logits_weak, logits_strong, loss, dlogits, later)
        return compiled
    result = two_view_loss(
        logits_weak, logits_strong, label, index, wrong_count, table, entropy_scale=entropy_scale,
        counter_order=counter_order, grad_scale=now, reduction="mean", errors=errors,
    )  # fmt: skip
    if not differentiable:
        return result.loss
    eager: Tensor = _WithGradients.apply(logits_weak, logits_strong, result.loss, result.dlogits, later)
    return eager


class _WithGradients(torch.autograd.Function):
    """loss, whose derivatives by the views are the halves of `dlogits * constant`, which backward gives away."""

    @staticmethod
    def forward(ctx: Any, weak: Tensor, strong: Tensor, loss: Tensor, dlogits: Tensor, constant: float) -> Tensor:
        ctx.dlogits, ctx.constant = dlogits, constant
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("fused losses have no second derivative; call backward without create_graph=True")
        dlogits = ctx.dlogits
        if dlogits is None:
            raise RuntimeError(
                "backward was called a second time on the same loss; call it with retain_graph=True the first time"
            )
        if _keeps_graph():
            dlogits = dlogits.clone()
        else:
            ctx.dlogits = None
        scale_rows_(dlogits.view(-1, dlogits.shape[2]), grad, ctx.constant)
        return dlogits[0], dlogits[1], None, None, None


class _WithGradientsCompiled(torch.autograd.Function):
    """The same in operations that torch.compile can trace."""

    @staticmethod
    def forward(ctx: Any, weak: Tensor, strong: Tensor, loss: Tensor, dlogits: Tensor, constant: float) -> Tensor:
        ctx.save_for_backward(dlogits)
        ctx.constant = constant
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (dlogits,) = ctx.saved_tensors
        weak, strong = (dlogits * (grad * ctx.constant)).to(dlogits.dtype).unbind(0)
        return weak, strong, None, None, None
