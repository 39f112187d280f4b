"""The row pass: loss, gradient, label memory and row statistics in one pass over the logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import backend
from ...errors import ShapeError
from .contract import RowLossInput, RowLossOutput, RowStats, TableTarget
from .definition import COEFFICIENTS, LOSSES, STATISTICS, LossDefinition, define_loss

__all__ = [
    "COEFFICIENTS",
    "LOSSES",
    "STATISTICS",
    "LossDefinition",
    "RowLossInput",
    "RowLossOutput",
    "RowStats",
    "TableTarget",
    "define_loss",
    "new_error_word",
    "row_loss",
]

REDUCTIONS = ("mean", "sum", "none")


def new_error_word(device: torch.device | str | None = None) -> Tensor:
    """(4,) int64 for `errors`: [kind, position in the batch, sample id, value]; kind 0 none, 1 label, 2 id."""
    return torch.zeros(4, dtype=torch.int64, device=device)


def row_loss(
    logits: Tensor,
    label: Tensor | None,
    loss: LossDefinition,
    parameters: Sequence[float] = (),
    *,
    target: Tensor | None = None,
    memory: TableTarget | None = None,
    index: Tensor | None = None,
    weight: Tensor | None = None,
    grad_scale: float = 1.0,
    reduction: str = "none",
    with_stats: bool = False,
    errors: Tensor,
) -> RowLossOutput:
    """One pass over the logits gives the loss of every row, its gradient and, when asked, the row's statistics.

        dlogits[b, j] = grad_scale weight[b] (a p_j - b [j = y] - c t_j + e p_j t_j + d p_j (log p_j + H) + f)

    with the six coefficients of `loss` (see `definition`). The target t is a constant.

    Args:
        logits: (B, C) float16, bfloat16 or float32, any strides (float64 on the reference backend).
        label: (B,) any integer type, given labels; None where neither loss nor statistics look at it.
        loss: what `define_loss` returned.
        parameters: its parameters in order, as `loss.parameters(...)` gives them.
        target: (B, C) soft labels; rows need not sum to one.
        memory: targets from a label memory, which this call moves. Of several occurrences of an id in the batch each
            uses the old row; the one with the highest position is stored.
        index: (B,) any integer type, sample ids; needed with `memory`.
        weight: (B,) factor of each sample's loss and gradient.
        grad_scale: factor of dlogits, 1/B for the gradient of a mean.
        reduction: "none" gives loss (B,), "sum" and "mean" (over B; of an empty batch 0) give loss ().
        with_stats: also return `RowStats`; needs `label`.
        errors: (4,) int64 from `new_error_word`. The first label outside [0, C) or id outside [0, N) is recorded
            there and stays; such a row has loss 0 and gradient 0 and touches no table.

    Returns:
        `RowLossOutput`. A row with NaN or +inf logits has loss NaN and gradient NaN, and leaves its memory row as it
        was; -inf counts as probability 0.

    Raises:
        ShapeError: shapes, types or devices do not fit; says what came and what was expected.

    Deterministic. Updates: memory.table, errors.
    """
    if logits.dim() != 2 or not logits.is_floating_point():
        raise ShapeError(f"logits is {_describe(logits)}; expected (B, C) of a floating type")
    batch, classes = logits.shape
    if classes == 0 or reduction not in REDUCTIONS:
        raise ShapeError(
            f"logits is {_describe(logits)} and reduction {reduction!r}; expected at least one class and one of {REDUCTIONS}"
        )
    if label is None:
        if loss.needs_label or with_stats or (memory is not None and memory.one_hot):
            raise ShapeError(f"label is None, but loss '{loss.name}' (or its statistics or memory) needs labels (B,)")
    elif label.dtype != torch.int64 or label.shape != (batch,) or not label.is_contiguous():
        label = _integers("label", label, batch)
    if weight is not None and (weight.shape != (batch,) or weight.dtype != torch.float32):
        weight = _floats("weight", weight, (batch,))
    if memory is not None:
        if target is not None:
            raise ShapeError("target and memory were both given; expected at most one source of soft labels")
        if index is None:
            raise ShapeError("index is None; the label memory needs the sample ids (B,) of the batch")
        if memory.table.shape[1] != classes:
            raise ShapeError(
                f"logits is {_describe(logits)} but the label memory has {memory.table.shape[1]} classes; "
                "build it with num_classes equal to the network's outputs"
            )
    elif target is not None:
        if target.shape != logits.shape:
            raise ShapeError(f"target has {tuple(target.shape)} but logits has {tuple(logits.shape)}")
        target = _floats("target", target, (batch, classes))
    elif loss.needs_target:
        raise ShapeError(f"loss '{loss.name}' needs soft targets; pass target (B, C) or memory")
    if index is not None and (index.dtype != torch.int64 or index.shape != (batch,) or not index.is_contiguous()):
        index = _integers("index", index, batch)
    call = RowLossInput(
        logits,
        label,
        loss,
        tuple(parameters),
        target,
        memory,
        index,
        None if weight is None else weight.contiguous(),
        grad_scale,
        reduction,
        with_stats,
        errors,
    )
    return backend.implementation("row_loss", logits)(call)


def _describe(x: Tensor) -> str:
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"


def _integers(name: str, x: Tensor, batch: int) -> Tensor:
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool or x.shape != (batch,):
        raise ShapeError(f"{name} is {_describe(x)}; expected ({batch},) of an integer type, one for each row of logits")
    return x.long().contiguous()


def _floats(name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    if x.shape != shape or not x.is_floating_point():
        raise ShapeError(f"{name} is {_describe(x)}; expected {shape} of a floating type")
    return x.float().contiguous()
