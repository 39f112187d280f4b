"""row_loss on the CPU: one compiled kernel serves every loss, whose coefficient function is called once per row."""

import torch
from torch import Tensor

from fastlnl.cpu import pages, team
from fastlnl.ops.row_loss.contract import RowLossInput, RowLossOutput, RowStats
from fastlnl.ops.row_loss.numba_coefficients import coefficient_pointer, needs_of, parameter_block
from fastlnl.ops.row_loss.numba_pass import DENSE, NO_TARGET, TABLE, prepare, process_rows, reduce_rows, whole_pass
from fastlnl.ops.row_loss.numba_storage import CODES, FLOAT32

SERIAL_BELOW = 1 << 18  # elements, about 200 us; on busy cores waking a helper can take as long
ROW_WORK = 40  # a row costs as much as this many elements before its first
CHUNK_ELEMENTS = 1 << 14


def row_loss(call_: RowLossInput) -> RowLossOutput:
    logits, memory = call_.logits, call_.memory
    batch, classes = logits.shape
    dlogits, loss = pages.empty(batch, classes), torch.empty(batch)
    row_stats = new_stats(batch) if call_.with_stats else None
    result = None
    if call_.reduction != "none":
        result = torch.empty(())
    if memory is not None:
        kind, target, num_samples = TABLE, memory.table, len(memory.table)
        use, keep, one_hot = memory.use, memory.keep, memory.one_hot
        storage = (CODES[memory.storage.kind], memory.storage.kept, memory.seed, memory.step)
    else:
        kind, target, num_samples = NO_TARGET if call_.target is None else DENSE, call_.target, 0
        use, keep, one_hot, storage = 1.0, 1.0, False, ()
    pass_over(
        logits, call_.label, call_.index, kind, target, num_samples, call_.errors, one_hot, use, keep, call_.weight,
        coefficient_pointer(call_.loss), parameter_block(call_.parameters)[1], needs_of(call_.loss),
        call_.grad_scale, loss, dlogits, row_stats, max(batch, 1) if call_.reduction == "mean" else 1, result,
        *storage,
    )  # fmt: skip
    if logits.dtype != torch.float32:
        dlogits = dlogits.to(logits.dtype)
    return RowLossOutput(loss if result is None else result, dlogits, row_stats)


def pass_over(
    logits: Tensor, label: Tensor | None, index: Tensor | None, kind: int, target: Tensor | None, num_samples: int,
    errors: Tensor, one_hot: bool, use: float, keep: float, weight: Tensor | None, coefficients: int, parameters: int,
    needs: int, grad_scale: float, loss: Tensor | None, dlogits: Tensor | None, stats: RowStats | None,
    divisor: float, result: Tensor | None, storage: int = FLOAT32, places: int = 0,
    seed: int = 0, step: Tensor | None = None,
) -> None:  # fmt: skip
    """The pass over the rows, in one thread or by the team; without `dlogits` it writes statistics only."""
    batch, classes = logits.shape
    z = logits if logits.dtype == torch.float32 else logits.detach().float()
    if z.stride(1) != 1:
        z = z.detach().contiguous()
    label_, index_, target_, errors_ = _address(label), _address(index), _address(target), errors.data_ptr()
    where_from = (batch, classes, z.data_ptr(), z.stride(0), label_, index_)
    what_to_do = (
        use, keep, _address(weight), coefficients, parameters, needs, grad_scale,
        _address(loss), _address(dlogits), 0 if stats is None else stats.numbers.data_ptr(),
        0 if stats is None else stats.prediction.data_ptr(), storage, places,
    )  # fmt: skip
    slots = 1 << (2 * batch).bit_length()
    result_ = _address(result)
    if batch * (classes + ROW_WORK) < SERIAL_BELOW:
        whole_pass(
            *where_from, kind, target_, num_samples, errors_, one_hot, *what_to_do, seed, _address(step), slots,
            divisor, result_,
        )  # fmt: skip
        return
    role = torch.empty(batch, dtype=torch.int8)
    role_, table = role.data_ptr(), target_ if kind == TABLE else 0
    start = one_hot and storage == FLOAT32  # of the other formats the pass takes care
    deferred = prepare(batch, classes, label_, index_, table, num_samples, errors_, start, True, role_, slots)
    rows = (max(1, CHUNK_ELEMENTS // classes), *where_from, role_, kind, target_, *what_to_do, one_hot, seed,
            _address(step))  # fmt: skip
    team.team.run(process_rows, *rows, False)
    if deferred:
        team.alone(process_rows, *rows, True)
    if result_ != 0:
        reduce_rows(_address(loss), batch, divisor, result_)


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def new_stats(batch: int) -> RowStats:
    return RowStats(torch.empty(5, batch), torch.empty(batch, dtype=torch.int64))
