"""row_loss as an operator of torch, for torch.compile; eager calls go straight to `row_loss`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlnl.ops.row_loss import row_loss
from fastlnl.ops.row_loss.contract import TableTarget
from fastlnl.ops.row_loss.definition import LOSSES
from fastlnl.ops.row_loss.storage import Storage

_library = torch.library.Library("fastlnl", "FRAGMENT")
_library.define(
    "row_loss(Tensor logits, Tensor? label, str loss, float[] parameters, Tensor? target, Tensor(a!)? table, "
    "float use, float keep, bool one_hot, Tensor? index, Tensor? weight, float grad_scale, str reduction, "
    "Tensor(b!) errors, str storage='float32', int kept=0, int classes=0, int seed=0, Tensor(c!)? step=None, "
    "bool with_stats=False) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
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
    storage: str = "float32",
    kept: int = 0,
    classes: int = 0,
    seed: int = 0,
    step: Tensor | None = None,
    with_stats: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, gradient, the numbers (5, B) and predictions (B,) of `RowStats`; empty where not asked for."""
    memory = None
    if table is not None:
        memory = TableTarget(table, use, keep, one_hot, Storage(storage, kept, classes), seed, step)
    value, dlogits, stats = row_loss(
        logits,
        label,
        LOSSES[loss],
        parameters,
        target=target,
        memory=memory,
        index=index,
        weight=weight,
        grad_scale=grad_scale,
        reduction=reduction,
        with_stats=with_stats,
        errors=errors,
    )
    if stats is None:
        return value, dlogits, logits.new_empty(0, dtype=torch.float32), logits.new_empty(0, dtype=torch.int64)
    return value, dlogits, stats.numbers, stats.prediction


@torch.library.register_fake("fastlnl::row_loss", lib=_library)
def _fake(
    logits: Tensor, label: Tensor | None, loss: str, parameters: Sequence[float], target: Tensor | None,
    table: Tensor | None, use: float, keep: float, one_hot: bool, index: Tensor | None, weight: Tensor | None,
    grad_scale: float, reduction: str, errors: Tensor, storage: str = "float32", kept: int = 0, classes: int = 0,
    seed: int = 0, step: Tensor | None = None, with_stats: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    value = logits.new_empty(logits.shape[:1] if reduction == "none" else (), dtype=dtype)
    numbers = logits.new_empty((5, logits.shape[0]) if with_stats else 0, dtype=torch.float32)
    prediction = logits.new_empty(logits.shape[0] if with_stats else 0, dtype=torch.int64)
    return value, logits.new_empty(logits.shape), numbers, prediction
