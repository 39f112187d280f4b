"""two_view_loss as an operator of torch, for torch.compile; eager calls go straight to `two_view_loss`."""

import torch
from torch import Tensor

from fastlnl.ops.two_view_loss import two_view_loss

_library = torch.library.Library("fastlnl", "FRAGMENT")
_library.define(
    "two_view_loss(Tensor logits_weak, Tensor logits_strong, Tensor label, Tensor index, Tensor(a!) wrong_count, "
    "Tensor table, str entropy_scale, str counter_order, float grad_scale, str reduction, Tensor(b!) errors) "
    "-> (Tensor, Tensor, Tensor)"
)


@torch.library.impl(_library, "two_view_loss", "CompositeExplicitAutograd")
def _two_view_loss(
    logits_weak: Tensor, logits_strong: Tensor, label: Tensor, index: Tensor, wrong_count: Tensor, table: Tensor,
    entropy_scale: str, counter_order: str, grad_scale: float, reduction: str, errors: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss, gradients (2, B, C), predictions (2, B)."""
    return two_view_loss(
        logits_weak,
        logits_strong,
        label,
        index,
        wrong_count,
        table,
        entropy_scale=entropy_scale,
        counter_order=counter_order,
        grad_scale=grad_scale,
        reduction=reduction,
        errors=errors,
    )


@torch.library.register_fake("fastlnl::two_view_loss", lib=_library)
def _fake(
    logits_weak: Tensor, logits_strong: Tensor, label: Tensor, index: Tensor, wrong_count: Tensor, table: Tensor,
    entropy_scale: str, counter_order: str, grad_scale: float, reduction: str, errors: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, classes = logits_weak.shape
    dtype = torch.float64 if logits_weak.dtype == torch.float64 else torch.float32
    loss = logits_weak.new_empty((batch,) if reduction == "none" else (), dtype=dtype)
    prediction = logits_weak.new_empty((2, batch), dtype=torch.int64)
    return loss, logits_weak.new_empty((2, batch, classes)), prediction
