"""row_loss by the CUDA C++ extension (`csrc/row_loss.cu`): one kernel for every loss it has."""

import torch

from fastlnl import extension
from fastlnl.errors import BackendError
from fastlnl.ops.row_loss import catalogue
from fastlnl.ops.row_loss.contract import RowLossInput, RowLossOutput, RowStats
from fastlnl.ops.row_loss.definition import MAX_PARAMETERS

KINDS = {  # as in csrc/kernels.h
    catalogue.cross_entropy: 0,
    catalogue.soft_cross_entropy: 1,
    catalogue.selc: 1,
    catalogue.alr: 2,
    catalogue.elr: 3,
    catalogue.gce: 4,
}
TILE_COLUMNS = 1024  # wider rows do not stay in registers (csrc/geometry.h)
NO_BOOK = (None, None, None, 0, 0, 0, 0, False, 0.0)


def refuse(call: RowLossInput) -> None:
    """Say what of the contract the extension does not serve."""
    if call.loss not in KINDS:
        raise BackendError(
            f"backend 'cuda' has no loss '{call.loss.name}', it has {', '.join(loss.name for loss in KINDS)}; "
            "use_backend('triton') has every loss"
        )


def row_loss(call: RowLossInput) -> RowLossOutput:
    refuse(call)
    batch, classes = call.logits.shape
    z = call.logits.detach()
    if z.stride(1) != 1 and classes > 1:
        z = z.contiguous()
    loss = torch.empty(batch, device=z.device)
    dlogits = torch.empty(batch, classes, dtype=z.dtype, device=z.device)
    book = None if call.book is None else call.book.tensors()
    if book is not None and book.records.device != z.device:
        book = None  # `update` says so
    stats = prediction = table = step = moved = None
    if call.with_stats and book is None:
        stats = torch.empty(5, batch, device=z.device)
        prediction = torch.empty(batch, dtype=torch.int64, device=z.device)
    use, keep, one_hot, seed, kept = 1.0, 1.0, False, 0, 0
    if call.memory is not None:
        table, step, seed, kept = call.memory.table, call.memory.step, call.memory.seed, call.memory.storage.kept
        use, keep, one_hot = call.memory.use, call.memory.keep, call.memory.one_hot
        if kept > 0 and classes > TILE_COLUMNS:
            moved = torch.empty(batch, classes, device=z.device)
    q = (*call.parameters, *[0.0] * (MAX_PARAMETERS - len(call.parameters)))
    entered = NO_BOOK if book is None else (*book[:4], *book.columns, book.momentum)
    extension.operators().row_loss(
        z, call.label, call.index, call.target, table, moved, step, call.weight, loss, dlogits, stats, prediction,
        call.errors, KINDS[call.loss], one_hot, kept, seed, use, keep, call.grad_scale, *q, *entered,
    )  # fmt: skip
    if call.reduction != "none":
        loss = loss.mean() if call.reduction == "mean" and batch > 0 else loss.sum()
    if stats is None or prediction is None:
        return RowLossOutput(loss, dlogits, None)
    return RowLossOutput(loss, dlogits, RowStats(stats, prediction))
