"""two_view_loss on the CPU: small batches in one thread, large ones by the team."""

import torch
from torch import Tensor

from fastlnl.cpu import pages, team
from fastlnl.ops.row_loss.numba_pass import reduce_rows
from fastlnl.ops.two_view_loss import TwoViewInput, TwoViewOutput
from fastlnl.ops.two_view_loss.numba_pass import (
    COUPLED,
    MEASURE,
    PLAIN,
    SAMPLE,
    average,
    prepare,
    process_rows,
    whole_pass,
)

SERIAL_BELOW = 1 << 18  # elements of both views
ROW_WORK = 60  # a row costs as much as this many elements before its first
CHUNK_ELEMENTS = 1 << 14


def two_view_loss(call: TwoViewInput) -> TwoViewOutput:
    batch, classes = call.weak.shape
    weak, strong = rows_of(call.weak), rows_of(call.strong)
    loss, dlogits = torch.empty(batch), pages.empty(2 * batch, classes)
    prediction = torch.empty(2, batch, dtype=torch.int64)
    result = None if call.reduction == "none" else torch.empty(())
    divisor = max(batch, 1) if call.reduction == "mean" else 1
    mode = {"none": PLAIN, "sample": SAMPLE, "batchmean": MEASURE}[call.entropy_scale]
    groups, depth, _ = call.table.shape
    slots = 1 << (2 * batch).bit_length()
    rows = (
        batch, classes, weak.data_ptr(), weak.stride(0), strong.data_ptr(), strong.stride(0), call.label.data_ptr(),
        call.index.data_ptr(),
    )  # fmt: skip
    count, table, errors, samples = (
        call.wrong_count.data_ptr(), call.table.data_ptr(), call.errors.data_ptr(), len(call.wrong_count)
    )  # fmt: skip
    outputs = loss.data_ptr(), dlogits.data_ptr(), prediction.data_ptr()
    if batch * (2 * classes + ROW_WORK) < SERIAL_BELOW:
        whole_pass(
            mode, *rows, count, table, samples, depth, groups, call.before, call.grad_scale, errors, *outputs, slots,
            divisor, 0 if result is None else result.data_ptr(),
        )  # fmt: skip
    else:
        role, weights = torch.empty(batch, dtype=torch.int8), torch.empty(batch, 2)
        terms = torch.empty(batch if mode == MEASURE else 0, 2, dtype=torch.float64)
        means = torch.zeros(2, dtype=torch.float64)
        role_, weights_, terms_, means_ = (x.data_ptr() for x in (role, weights, terms, means))
        prepare(
            *rows, count, samples, table, groups, depth, call.before, weights_, errors, role_, slots
        )  # fmt: skip
        shared = (*rows, count, table, groups, call.before, call.grad_scale, depth, weights_, terms_, means_, *outputs,
                  role_)  # fmt: skip
        chunk = max(1, CHUNK_ELEMENTS // classes)
        team.team.run(process_rows, chunk, mode, *shared)
        if mode == MEASURE:
            average(batch, terms_, role_, means_)
            team.team.run(process_rows, chunk, COUPLED, *shared)
        if result is not None:
            reduce_rows(loss.data_ptr(), batch, divisor, result.data_ptr())
    both = dlogits.view(2, batch, classes)
    if call.weak.dtype != torch.float32:
        both = both.to(call.weak.dtype)
    return TwoViewOutput(loss if result is None else result, both, prediction)


def rows_of(logits: Tensor) -> Tensor:
    """float32 rows of neighbouring columns; a copy only where logits are not that already."""
    z = logits if logits.dtype == torch.float32 else logits.detach().float()
    return z if z.stride(1) == 1 else z.detach().contiguous()
