"""row_loss as an operator of torch, for torch.compile; eager calls go straight to `row_loss`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlnl.ops.row_loss import row_loss
from fastlnl.ops.row_loss.contract import TableTarget
from fastlnl.ops.row_loss.definition import LOSSES

_library = torch.library.Library("fastlnl", "FRAGMENT")
_library.define(
    "row_loss(Tensor logits, Tensor? label, str loss, float[] parameters, Tensor? target, Tensor(a!)? table, "
    "float use, float keep, bool one_hot, Tensor? index, Tensor? weight, float grad_scale, str reduction, "
    "Tensor(b!) errors) "
    "-> (Tensor, Tensor)"
)


@torch.library.impl(_library, "row_loss", "CompositeExplicitAutograd")
def _row_loss(
    logits: Tensor,
    label: Tensor | None,
    loss: str,
    parameters: Sequence[float],
    target: Tensor | None,
    table: Tensor | None,
    use: float,
    keep: float,
    one_hot: bool,
    index: Tensor | None,
    weight: Tensor | None,
    grad_scale: float,
    reduction: str,
    errors: Tensor,
) -> tuple[Tensor, Tensor]:
    value, dlogits, _ = row_loss(
        logits,
        label,
        LOSSES[loss],
        parameters,
        target=target,
        memory=None if table is None else TableTarget(table, use, keep, one_hot),
        index=index,
        weight=weight,
        grad_scale=grad_scale,
        reduction=reduction,
        errors=errors,
    )
    return value, dlogits


@torch.library.register_fake("fastlnl::row_loss", lib=_library)
def _fake(
    logits: Tensor, label: Tensor | None, loss: str, parameters: Sequence[float], target: Tensor | None,
    table: Tensor | None, use: float, keep: float, one_hot: bool, index: Tensor | None, weight: Tensor | None,
    grad_scale: float, reduction: str, errors: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    value = logits.new_empty(logits.shape[:1] if reduction == "none" else (), dtype=dtype)
    return value, logits.new_empty(logits.shape)
