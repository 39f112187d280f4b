"""row_loss on the CPU: one compiled kernel serves every loss, whose coefficient function is called once per row."""

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ...cpu import team
from ...cpu.native import as_float32, as_float64, as_int8, as_int64, call, prefetch, take
from ...cpu.native import keep as keep_alive
from ...cpu.rows import (
    fill,
    first_column,
    largest_between,
    softmax_sums,
    softmax_target_sums,
    write_gradient,
    write_gradient_with_entropy,
    write_gradient_with_target,
)
from .contract import RowLossInput, RowLossOutput, RowStats
from .numba_coefficients import ENTROPY_TERM, P_LABEL, coefficient_pointer, needs_of, parameter_block

NO_TARGET, DENSE, TABLE = 0, 1, 2
STORE, READ_ONLY, DEFERRED, INVALID = 0, 1, 2, 3  # roles of a batch position
ROLE, FRESH = 3, 4  # bits: the role; its memory row was never written before
SERIAL_BELOW = 1 << 18  # elements, about 150 us; on busy cores waking a helper can take as long
CHUNK_ELEMENTS = 1 << 14
AHEAD, AHEAD_BYTES = 4, 1024  # rows of the label memory lie anywhere: the start of each is asked for some rows before


@njit("int64(int64,int64,int64,int64,int64,int64,int64,boolean,boolean,int64,int64)", cache=True, nogil=True)
def prepare(batch, classes, label_, index_, table_, rows, errors_, one_hot, defer, role_, slots):
    """Give each position its role, in batch order; report the first label or id that is out of range.

    Of several occurrences of an id the last one stores its row. With `defer` it has to wait until all
    others have read; returns how many wait.
    """
    role, label, index, errors = as_int8(role_), as_int64(label_), as_int64(index_), as_int64(errors_)
    deferred = 0
    for b in range(batch):
        role[b] = STORE
        if label_ != 0 and not 0 <= label[b] < classes:
            role[b] = INVALID
            if errors[0] == 0:
                errors[0], errors[1], errors[2], errors[3] = 1, b, index[b] if index_ != 0 else b, label[b]
        if table_ != 0 and not 0 <= index[b] < rows:
            role[b] = INVALID
            if errors[0] == 0:
                errors[0], errors[1], errors[2], errors[3] = 2, b, index[b], index[b]
    if table_ == 0:
        return deferred
    seen = np.full(slots, -1, np.int32)  # open addressing, at most half full
    for b in range(batch - 1, -1, -1):
        if role[b] == INVALID:
            continue
        slot = (index[b] * 0x9E3779B1) & (slots - 1)
        while seen[slot] >= 0 and index[seen[slot]] != index[b]:
            slot = (slot + 1) & (slots - 1)
        if seen[slot] < 0:
            seen[slot] = b
        else:
            role[b] = READ_ONLY
            if defer and role[seen[slot]] & ROLE != DEFERRED:
                role[seen[slot]] |= DEFERRED
                deferred += 1
        if one_hot:
            row = table_ + 4 * index[b] * classes
            head = as_float32(row)
            if head[0] < 0:
                role[b] |= FRESH
                fill(row, classes, 0.0)
                head[label[b]] = 1.0
    return deferred


@njit(
    "void(int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,float64,float64,int64,int64,int64,int64,"
    "float64,int64,int64,int64,int64,boolean)",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def process_rows(
    cursor, chunk, batch, classes, logits, logits_stride, label_, index_, role_, kind, target_, use, keep,
    weight_, coefficients, parameters, needs, grad_scale, loss_, dlogits, stats_, prediction_, deferred,
):  # fmt: skip
    """Rows of the batch, `chunk` at a time, until the cursor is past the end; statistics only without dlogits."""
    label, index, role = as_int64(label_), as_int64(index_), as_int8(role_)
    weight, loss, stats, prediction = as_float32(weight_), as_float32(loss_), as_float32(stats_), as_int64(prediction_)
    scratch, numbers = np.empty(classes + 16, np.float32), np.zeros(16, np.float64)
    e, statistics_ = scratch.ctypes.data, numbers.ctypes.data
    out_ = statistics_ + 8 * 8
    statistics, out = as_float64(statistics_), as_float64(out_)
    statistics[7] = classes
    while True:
        begin = take(cursor, chunk)
        if begin >= batch:
            break
        for b in range(begin, min(begin + chunk, batch)):
            if kind == TABLE and b + AHEAD < batch and role[b + AHEAD] != INVALID:
                ahead = target_ + 4 * classes * index[b + AHEAD]
                for line in range(0, min(4 * classes, AHEAD_BYTES), 64):
                    prefetch(ahead + line)
            task = role[b] & ROLE
            if (task == DEFERRED) != deferred:
                continue
            z, dz, y = logits + 4 * b * logits_stride, dlogits + 4 * b * classes, label[b] if label_ != 0 else -1
            if task == INVALID:
                if stats_ != 0:
                    for i in range(5):
                        stats[i * batch + b] = 0.0
                    prediction[b] = 0
                if dlogits != 0:
                    loss[b] = 0.0
                    fill(dz, classes, 0.0)
                continue
            z_row = as_float32(z)
            if stats_ != 0 and y >= 0:
                others = max(largest_between(z, 0, y), largest_between(z, y + 1, classes))
                top = max(others, z_row[y])
            else:
                others = top = largest_between(z, 0, classes)
            b_use, b_keep, target = use, keep, target_
            s_r, s_rx, s_re, s_ee = 0.0, 0.0, 0.0, 0.0
            if kind == NO_TARGET:
                s_e, s_ex, s_x = softmax_sums(z, classes, top, e)
            else:
                target = target_ + 4 * classes * (index[b] if kind == TABLE else b)
                if kind == TABLE and as_float32(target)[0] < 0:
                    b_use, b_keep = 0.0, 0.0  # never written: the prediction takes its place
                s_e, s_ex, s_x, s_r, s_rx, s_re, s_ee = softmax_target_sums(z, classes, top, e, target)
            scale = 1.0 / s_e
            log_sum = math.log(s_e)
            entropy = log_sum - s_ex * scale
            offset = -s_ex * scale  # H - log sum e, without the cancellation
            x_y = max(np.float64(z_row[y]) - top, -1e30) if y >= 0 else 0.0
            nll = log_sum - x_y
            finite = math.isfinite(s_e + s_x)
            if stats_ != 0:
                margin = np.float64(z_row[y]) - others if classes > 1 else 0.0
                stats[b], stats[batch + b], stats[2 * batch + b] = nll, math.exp(-nll), scale
                stats[3 * batch + b], stats[4 * batch + b] = margin, entropy
                prediction[b] = first_column(z, classes, top)
            if dlogits == 0:
                continue
            statistics[0], statistics[2], statistics[6] = nll, entropy, s_x - classes * log_sum
            if needs & P_LABEL:
                statistics[1] = math.exp(-nll)
            statistics[3] = b_use * s_r + (1 - b_use)
            statistics[4] = (b_use * s_re + (1 - b_use) * s_ee * scale) * scale
            statistics[5] = b_use * (s_rx - log_sum * s_r) - (1 - b_use) * entropy
            call(coefficients, statistics_, parameters, out_)
            w = np.float64(weight[b]) if weight_ != 0 else 1.0
            loss[b] = out[0] * w if finite else np.nan
            w = w * grad_scale if finite else np.nan
            if kind != NO_TARGET:
                update = kind == TABLE and task != READ_ONLY and finite
                write_gradient_with_target(
                    z, classes, top, e, target, dz, scale, b_use, b_keep, update,
                    out[1] * w, out[3] * w, out[4] * w, out[5] * w, offset, out[6] * w,
                )  # fmt: skip
            elif needs & ENTROPY_TERM:
                write_gradient_with_entropy(z, classes, top, e, dz, scale, out[1] * w, out[4] * w, offset, out[6] * w)
            else:
                write_gradient(classes, e, dz, scale, out[1] * w, out[6] * w)
            if y >= 0:
                as_float32(dz)[y] -= out[2] * w
            if role[b] & FRESH and not finite:
                fill(target, classes, -1.0)
    keep_alive(scratch)
    keep_alive(numbers)


@njit("void(int64,int64,float64,int64)", cache=True, nogil=True)
def reduce_rows(loss_, batch, divisor, result):
    """Sum of the losses, in float64 and in batch order, over `divisor`."""
    loss, total = as_float32(loss_), 0.0
    for b in range(batch):
        total += loss[b]
    as_float32(result)[0] = total / divisor


@njit(
    "void(int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,boolean,float64,float64,int64,int64,int64,"
    "int64,float64,int64,int64,int64,int64,int64,float64,int64)",
    cache=True,
    nogil=True,
)
def whole_pass(
    batch, classes, logits, logits_stride, label, index, kind, target, num_samples, errors, one_hot, use, keep, weight,
    coefficients, parameters, needs, grad_scale, loss, dlogits, stats, prediction, slots, divisor, result,
):  # fmt: skip
    """All of it in one call and one thread: a small batch costs more to call for than to compute."""
    role, cursor = np.empty(batch, np.int8), np.zeros(1, np.int64)
    role_, table = role.ctypes.data, target if kind == TABLE else 0
    prepare(batch, classes, label, index, table, num_samples, errors, one_hot, False, role_, slots)
    process_rows(
        cursor.ctypes.data, batch, batch, classes, logits, logits_stride, label, index, role_, kind, target, use, keep,
        weight, coefficients, parameters, needs, grad_scale, loss, dlogits, stats, prediction, False,
    )  # fmt: skip
    keep_alive(role)
    keep_alive(cursor)
    if result != 0:
        reduce_rows(loss, batch, divisor, result)


def row_loss(call_: RowLossInput) -> RowLossOutput:
    logits, memory = call_.logits, call_.memory
    batch, classes = logits.shape
    dlogits, loss = torch.empty(batch, classes), torch.empty(batch)
    stats = prediction = result = None
    if call_.with_stats:
        stats, prediction = torch.empty(5, batch), torch.empty(batch, dtype=torch.int64)
    if call_.reduction != "none":
        result = torch.empty(())
    if memory is not None:
        kind, target, num_samples = TABLE, memory.table, len(memory.table)
        use, keep, one_hot = memory.use, memory.keep, memory.one_hot
    else:
        kind, target, num_samples = NO_TARGET if call_.target is None else DENSE, call_.target, 0
        use, keep, one_hot = 1.0, 1.0, False
    pass_over(
        logits, call_.label, call_.index, kind, target, num_samples, call_.errors, one_hot, use, keep, call_.weight,
        coefficient_pointer(call_.loss), parameter_block(call_.parameters)[1], needs_of(call_.loss),
        call_.grad_scale, loss, dlogits, stats, prediction, max(batch, 1) if call_.reduction == "mean" else 1, result,
    )  # fmt: skip
    if logits.dtype != torch.float32:
        dlogits = dlogits.to(logits.dtype)
    return RowLossOutput(loss if result is None else result, dlogits, row_stats_of(stats, prediction))


def pass_over(
    logits: Tensor, label: Tensor | None, index: Tensor | None, kind: int, target: Tensor | None, num_samples: int,
    errors: Tensor, one_hot: bool, use: float, keep: float, weight: Tensor | None, coefficients: int, parameters: int,
    needs: int, grad_scale: float, loss: Tensor | None, dlogits: Tensor | None, stats: Tensor | None,
    prediction: Tensor | None, divisor: float, result: Tensor | None,
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
        _address(loss), _address(dlogits), _address(stats), _address(prediction),
    )  # fmt: skip
    slots = 1 << (2 * batch).bit_length()
    result_ = _address(result)
    if batch * classes < SERIAL_BELOW:
        whole_pass(
            *where_from, kind, target_, num_samples, errors_, one_hot, *what_to_do, slots, divisor, result_
        )  # fmt: skip
        return
    role = torch.empty(batch, dtype=torch.int8)
    role_, table = role.data_ptr(), target_ if kind == TABLE else 0
    deferred = prepare(batch, classes, label_, index_, table, num_samples, errors_, one_hot, True, role_, slots)
    rows = (max(1, CHUNK_ELEMENTS // classes), *where_from, role_, kind, target_, *what_to_do)
    team.team.run(process_rows, *rows, False)
    if deferred:
        team.alone(process_rows, *rows, True)
    if result_ != 0:
        reduce_rows(_address(loss), batch, divisor, result_)


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def row_stats_of(stats: Tensor | None, prediction: Tensor | None) -> RowStats | None:
    """The rows of `stats` (5, B) by their names; None if there are none."""
    if stats is None or prediction is None:
        return None
    nll, p_label, confidence, margin, entropy = stats
    return RowStats(nll, p_label, confidence, prediction, margin, entropy)
