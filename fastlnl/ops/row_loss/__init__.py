"""The row pass: loss, gradient, label memory and row statistics in one pass over the logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlnl import backend
from fastlnl.errors import DefinitionError, ShapeError
from fastlnl.ops.doors import check_device, check_logits, describe, floats, integers
from fastlnl.ops.row_loss.contract import Book, RowLossInput, RowLossOutput, RowStats, TableTarget
from fastlnl.ops.row_loss.definition import COEFFICIENTS, LOSSES, STATISTICS, LossDefinition, define_loss
from fastlnl.ops.row_loss.storage import Storage

__all__ = [
    "COEFFICIENTS",
    "LOSSES",
    "STATISTICS",
    "Book",
    "LossDefinition",
    "RowLossInput",
    "RowLossOutput",
    "RowStats",
    "Storage",
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
    book: Book | None = None,
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
        index: (B,) any integer type, sample ids; needed with `memory`. Repeated ids carry the same label. -1 is
            padding: loss 0, gradient 0, no table touched, its label not looked at.
        weight: (B,) factor of each sample's loss and gradient.
        grad_scale: factor of dlogits, 1/B for the gradient of a mean.
        reduction: "none" gives loss (B,), "sum" and "mean" (over B; of an empty batch 0) give loss ().
        with_stats: also return `RowStats`; needs `label`.
        book: enter the statistics of the batch there; needs `label` and `index`.
        errors: (4,) int64 from `new_error_word`. The first label outside [0, C) or id outside [0, N) is recorded
            there and stays (of several in one batch on a GPU, the one whose program comes first); such a row has loss
            0 and gradient 0 and touches no table.

    Returns:
        `RowLossOutput`. A row with NaN or +inf logits has loss NaN and gradient NaN, and leaves its memory row as it
        was; -inf counts as probability 0.

    Raises:
        ShapeError: shapes, types or devices do not fit; says what came and what was expected.
        DefinitionError: the loss has more or fewer parameters.

    Deterministic. Updates: memory.table, memory.step, book, errors.
    """
    batch, classes = check_logits(logits)
    if reduction not in REDUCTIONS:
        raise ShapeError(f"reduction is {reduction!r}; expected one of {', '.join(REDUCTIONS)}")
    if len(parameters) != len(loss.defaults):
        raise DefinitionError(
            f"loss '{loss.name}' got {len(parameters)} parameters but has {', '.join(loss.defaults) or 'none'}; "
            "pass what its parameters() gives"
        )
    if label is not None:
        label = integers("label", label, batch, logits)
    elif loss.needs_label or with_stats or book is not None or (memory is not None and memory.one_hot):
        raise ShapeError(f"label is None, but loss '{loss.name}' (or its statistics or memory) needs labels (B,)")
    if index is not None:
        index = integers("index", index, batch, logits)
    elif book is not None:
        raise ShapeError("index is None; the book needs the sample ids (B,) of the batch")
    if weight is not None:
        weight = floats("weight", weight, (batch,), logits)
    if memory is not None:
        _check_memory(logits, index, target, memory)
    elif target is not None:
        target = floats("target", target, (batch, classes), logits)
    elif loss.needs_target:
        raise ShapeError(f"loss '{loss.name}' needs soft targets; pass target (B, C) or memory")
    call = RowLossInput(
        logits,
        label,
        loss,
        tuple(parameters),
        target,
        memory,
        index,
        weight,
        grad_scale,
        reduction,
        with_stats or book is not None,
        errors,
        None if with_stats else book,
    )
    result: RowLossOutput = backend.implementation("row_loss", logits)(call)
    if book is not None and result.stats is not None:
        assert index is not None
        assert label is not None
        book.update(index, label, result.stats)
    if memory is not None and memory.step is not None:
        memory.step.add_(1)
    return result


def _check_memory(logits: Tensor, index: Tensor | None, target: Tensor | None, memory: TableTarget) -> None:
    if target is not None:
        raise ShapeError("target and memory were both given; expected at most one source of soft labels")
    if index is None:
        raise ShapeError("index is None; the label memory needs the sample ids (B,) of the batch")
    table, storage, classes = memory.table, memory.storage, logits.shape[1]
    topk = storage.kind == "topk"
    if table.dim() != 2 or table.dtype != storage.dtype or not table.is_contiguous():
        width = "W" if topk else "C"
        dtype = str(storage.dtype).removeprefix("torch.")
        raise ShapeError(f"the label memory is {describe(table)}; expected a contiguous (N, {width}) {dtype} table")
    held = storage.classes if topk else table.shape[1]
    if held != classes:
        raise ShapeError(
            f"logits is {describe(logits)} but the label memory has {held} classes; "
            "build it with num_classes equal to the network's outputs"
        )
    if table.shape[1] != storage.width(classes):
        raise ShapeError(f"the label memory is {describe(table)}; expected records of {storage.width(classes)} words")
    if table.device != logits.device and not table.is_pinned():  # kernels reach pinned memory from the GPU
        check_device("the label memory", table, logits)
    if storage.lossy:
        step = memory.step
        if step is None or step.dim() != 0 or step.dtype != torch.int64:
            came = "None" if step is None else describe(step)
            raise ShapeError(f"the step of the label memory is {came}; storage {storage} needs a counter () int64")
        check_device("the step of the label memory", step, logits)
