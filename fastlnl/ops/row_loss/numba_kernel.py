"""row_loss on the CPU: one compiled kernel serves every loss, whose coefficient function is called once per row."""

import torch
from torch import Tensor

from fastlnl.cpu import pages, team
from fastlnl.ops.row_loss.contract import RowLossInput, RowLossOutput, RowStats
from fastlnl.ops.row_loss.numba_coefficients import coefficient_pointer, needs_of, parameter_block
from fastlnl.ops.row_loss.numba_pass import ALL, CHECK, process_rows, reduce_rows, tell_book, whole_pass
from fastlnl.ops.row_loss.numba_storage import CODES, DENSE, FLOAT32, NO_TARGET, TABLE, prepare

SERIAL_BELOW = 1 << 18  # elements, about 200 us; on busy cores waking a helper can take as long
ROW_WORK = 40  # a row costs as much as this many elements before its first
CHUNK_ELEMENTS = 1 << 14


def row_loss(call_: RowLossInput) -> RowLossOutput:
    logits, memory, book = call_.logits, call_.memory, call_.book
    batch, classes = logits.shape
    dlogits, loss, result = pages.empty(batch, classes), None, None
    if call_.reduction == "none":
        loss = torch.empty(batch)
    else:
        result = torch.empty(())
    block = 0 if book is None else book.native()
    row_stats = new_stats(batch) if call_.with_stats and block == 0 else None
    if memory is not None:
        kind, target, num_samples = TABLE, memory.table, memory.table.shape[0]
        use, keep, one_hot = memory.use, memory.keep, memory.one_hot
        storage = (CODES[memory.storage.kind], memory.storage.kept, memory.seed, memory.step)
    else:
        kind, target, num_samples = NO_TARGET if call_.target is None else DENSE, call_.target, 0
        use, keep, one_hot, storage = 1.0, 1.0, False, ()
    pass_over(
        logits, call_.label, call_.index, kind, target, num_samples, call_.errors, one_hot, use, keep, call_.weight,
        coefficient_pointer(call_.loss), parameter_block(call_.parameters)[1], needs_of(call_.loss),
        call_.grad_scale, loss, dlogits, row_stats, max(batch, 1) if call_.reduction == "mean" else 1, result, block,
        *storage,
    )  # fmt: skip
    if logits.dtype != torch.float32:
        dlogits = dlogits.to(logits.dtype)
    value = loss if result is None else result
    assert value is not None
    return RowLossOutput(value, dlogits, row_stats)


def pass_over(
    logits: Tensor, label: Tensor | None, index: Tensor | None, kind: int, target: Tensor | None, num_samples: int,
    errors: Tensor, one_hot: bool, use: float, keep: float, weight: Tensor | None, coefficients: int, parameters: int,
    needs: int, grad_scale: float, loss: Tensor | None, dlogits: Tensor | None, stats: RowStats | None,
    divisor: float, result: Tensor | None, book: int = 0, storage: int = FLOAT32, places: int = 0,
    seed: int = 0, step: Tensor | None = None,
) -> None:  # fmt: skip
    """The pass over the rows, in one thread or by the team; without `dlogits` it writes statistics only."""
    batch, classes = logits.shape
    z = logits if logits.dtype == torch.float32 else logits.detach().float()
    if z.stride(1) != 1:
        z = z.detach().contiguous()
    label_, index_, target_, errors_ = _address(label), _address(index), _address(target), errors.data_ptr()
    where_from = (batch, classes, z.data_ptr(), z.stride(0), label_, index_)
    weight_, dlogits_, step_, result_ = _address(weight), _address(dlogits), _address(step), _address(result)
    slots = 1 << (2 * batch).bit_length()
    if batch * (classes + ROW_WORK) < SERIAL_BELOW:
        numbers, prediction = (0, 0) if stats is None else (stats.numbers.data_ptr(), stats.prediction.data_ptr())
        whole_pass(
            *where_from, kind, target_, num_samples, errors_, one_hot, use, keep, weight_, coefficients, parameters,
            needs, grad_scale, _address(loss), dlogits_, numbers, prediction, storage, places, seed, step_, book, slots,
            divisor, result_,
        )  # fmt: skip
        return
    role = torch.empty(batch, dtype=torch.int8)
    role_, table = role.data_ptr(), target_ if kind == TABLE else 0
    start = one_hot and storage == FLOAT32  # of the other formats the pass takes care
    deferred, unfit = prepare(
        batch, classes, label_, index_, table, num_samples, errors_, start, True, book != 0, role_, slots
    )
    late = book != 0 and unfit > 0  # ids repeat: the book takes the batch as a whole
    if late and stats is None:
        stats = new_stats(batch)
    if loss is None and result is not None:
        loss = torch.empty(batch)
    loss_ = _address(loss)
    numbers, prediction = (0, 0) if stats is None else (stats.numbers.data_ptr(), stats.prediction.data_ptr())
    if book != 0 and not late:
        tell_book(book, CHECK, batch, index_, label_, 0, 0)
    rows = (
        max(1, CHUNK_ELEMENTS // classes), *where_from, role_, kind, target_, use, keep, weight_, coefficients,
        parameters, needs, grad_scale, loss_, dlogits_, numbers, prediction, storage, places, one_hot, seed, step_,
        0 if late else book,
    )  # fmt: skip
    team.team.run(process_rows, *rows, False)
    if deferred:
        team.alone(process_rows, *rows, True)
    if late:
        tell_book(book, ALL, batch, index_, label_, numbers, prediction)
    if result_ != 0:
        reduce_rows(loss_, batch, divisor, result_)


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def new_stats(batch: int) -> RowStats:
    return RowStats(torch.empty(5, batch), torch.empty(batch, dtype=torch.int64))
