"""The kernels of row_loss on the CPU; every argument is a number, tensors come as the addresses of their memory."""

import math

import numpy as np
from numba import njit

from fastlnl.cpu.narrow_rows import NARROW, distance, narrow_sums, write_narrow_gradient
from fastlnl.cpu.native import as_float32, as_float64, as_int8, as_int64, call, prefetch, take
from fastlnl.cpu.native import keep as keep_alive
from fastlnl.cpu.rows import (
    fill,
    first_column,
    gradient_at,
    largest_between,
    largest_except,
    softmax_sums,
    softmax_target_sums,
    write_gradient,
    write_gradient_with_entropy,
    write_gradient_with_target,
)
from fastlnl.ops.row_loss.contract import PADDING
from fastlnl.ops.row_loss.numba_coefficients import ENTROPY_TERM, P_LABEL
from fastlnl.ops.row_loss.numba_storage import FLOAT32, open_row, record_bytes, write_row

NO_TARGET, DENSE, TABLE = 0, 1, 2
STORE, READ_ONLY, DEFERRED, INVALID = 0, 1, 2, 3  # roles of a batch position
ROLE, FRESH = 3, 4  # bits: the role; its memory row was never written before
AHEAD_BYTES = 2048  # rows of the label memory lie anywhere: the start of each is asked for some rows before


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
        if table_ != 0 and index[b] == PADDING:
            role[b] = INVALID
            continue
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
    "float64,int64,int64,int64,int64,int64,int64,boolean,int64,int64,boolean)",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def process_rows(
    cursor, chunk, batch, classes, logits, logits_stride, label_, index_, role_, kind, target_, use, keep,
    weight_, coefficients, parameters, needs, grad_scale, loss_, dlogits, stats_, prediction_, storage, places,
    one_hot, seed, step_, deferred,
):  # fmt: skip
    """Rows of the batch, `chunk` at a time, until the cursor is past the end; statistics only without dlogits.

    A few rows at a time go through three phases: sums over the columns, coefficients, gradient. The phases of one row
    wait for each other; those of neighbours do not, and the processor overlaps them. Rows of a label memory that is
    not float32 are decoded in the first phase and written back in the last.
    """
    label, index, role = as_int64(label_), as_int64(index_), as_int8(role_)
    weight, loss, stats, prediction = as_float32(weight_), as_float32(loss_), as_float32(stats_), as_int64(prediction_)
    group, width = max(1, min(8, 2048 // classes)), classes + 16
    spare = 0 if storage == FLOAT32 else group * width + 2 * (places + 17)
    exps, numbers = np.empty(group * width + spare, np.float32), np.zeros((2 * group + 1) * 8, np.float64)
    targets, size = np.zeros(group, np.int64), record_bytes(storage, classes, places)
    exps_, sums_ = exps.ctypes.data, numbers.ctypes.data
    decoded_, lists_ = exps_ + 4 * group * width, exps_ + 8 * group * width
    out_, statistics_ = sums_ + 64 * group, sums_ + 128 * group
    statistics = as_float64(statistics_)
    statistics[7] = classes
    while True:
        begin = take(cursor, chunk)
        if begin >= batch:
            break
        end = min(begin + chunk, batch)
        for first in range(begin, end, group):
            last = min(first + group, end)
            for b in range(first, last):
                if kind == TABLE and b + group < batch and role[b + group] != INVALID:
                    ahead = target_ + size * index[b + group]
                    for line in range(0, min(size, AHEAD_BYTES), 64):
                        prefetch(ahead + line)
                task = role[b] & ROLE
                if task == INVALID or (task == DEFERRED) != deferred:
                    continue
                z, e, s = logits + 4 * b * logits_stride, exps_ + 4 * width * (b - first), sums_ + 64 * (b - first)
                sums, top = as_float64(s), largest_between(z, 0, classes)
                sums[0] = top
                target = 0 if kind == NO_TARGET else target_ + size * (index[b] if kind == TABLE else b)
                if storage != FLOAT32:
                    record, target = target, decoded_ + 4 * width * (b - first)
                    if open_row(storage, record, classes, places, target, lists_, label[b] if one_hot else -1):
                        role[b] |= FRESH
                targets[b - first] = target
                if classes <= NARROW:
                    sums[1], sums[2], sums[3], sums[4], sums[5], sums[6], sums[7] = narrow_sums(
                        z, classes, top, e, target
                    )
                elif kind == NO_TARGET:
                    sums[1], sums[2], sums[3] = softmax_sums(z, classes, top, e)
                else:
                    sums[1], sums[2], sums[3], sums[4], sums[5], sums[6], sums[7] = softmax_target_sums(
                        z, classes, top, e, target
                    )
            for b in range(first, last):
                task = role[b] & ROLE
                if (task == DEFERRED) != deferred:
                    continue
                if task == INVALID:
                    if stats_ != 0:
                        for i in range(5):
                            stats[i * batch + b] = 0.0
                        prediction[b] = 0
                    continue
                z, y = logits + 4 * b * logits_stride, label[b] if label_ != 0 else -1
                sums, out = as_float64(sums_ + 64 * (b - first)), as_float64(out_ + 64 * (b - first))
                top, s_e, s_ex, s_x = sums[0], sums[1], sums[2], sums[3]
                scale, log_sum = 1.0 / s_e, math.log(s_e)
                entropy = log_sum - s_ex * scale
                nll = log_sum - (max(np.float64(as_float32(z)[y]) - top, -1e30) if y >= 0 else 0.0)
                finite = math.isfinite(s_e + s_x)
                if stats_ != 0:
                    z_y = np.float64(as_float32(z)[y])
                    others = top if z_y < top else largest_except(z, classes, y)
                    stats[b], stats[batch + b] = nll, scale * as_float32(exps_ + 4 * width * (b - first))[y]
                    stats[2 * batch + b], stats[4 * batch + b] = scale, entropy
                    stats[3 * batch + b] = z_y - others if classes > 1 else 0.0
                    prediction[b] = y if others < top else first_column(z, classes, np.float32(top))
                if dlogits == 0:
                    continue
                statistics[0], statistics[2], statistics[6] = nll, entropy, s_x - classes * log_sum
                if needs & P_LABEL:
                    statistics[1] = math.exp(-nll)
                if kind != NO_TARGET:
                    old = use
                    if kind == TABLE and as_float32(targets[b - first])[0] < 0:
                        old = 0.0  # never written: the prediction takes its place
                    statistics[3] = old * sums[4] + (1 - old)
                    statistics[4] = (old * sums[6] + (1 - old) * sums[7] * scale) * scale
                    statistics[5] = old * (sums[5] - log_sum * sums[4]) - (1 - old) * entropy
                call(coefficients, statistics_, parameters, out_ + 64 * (b - first))
                w = np.float64(weight[b]) if weight_ != 0 else 1.0
                loss[b] = out[0] * w if finite else np.nan
                w = w * grad_scale if finite else np.nan
                for i in range(1, 7):
                    out[i] *= w
                sums[1], sums[2] = scale, -s_ex * scale  # the second is H - log sum e, without the cancellation
            for b in range(first, last):
                task = role[b] & ROLE
                if dlogits == 0 or (task == DEFERRED) != deferred:
                    continue
                dz, e = dlogits + 4 * b * classes, exps_ + 4 * width * (b - first)
                if task == INVALID:
                    loss[b] = 0.0
                    fill(dz, classes, 0.0)
                    continue
                z, y = logits + 4 * b * logits_stride, label[b] if label_ != 0 else -1
                sums, out = as_float64(sums_ + 64 * (b - first)), as_float64(out_ + 64 * (b - first))
                top, scale, offset = np.float32(sums[0]), sums[1], sums[2]
                target, old, kept, update, t = targets[b - first], 1.0, 1.0, False, 0.0
                if kind != NO_TARGET:
                    finite, fresh = math.isfinite(scale + sums[3]), kind == TABLE and as_float32(target)[0] < 0
                    old, kept = 0.0 if fresh else use, 0.0 if fresh else keep
                    update = kind == TABLE and task != READ_ONLY and finite
                    if out[2] != 0:
                        t = old * as_float32(target)[y] + (1 - old) * scale * as_float32(e)[y]
                if classes <= NARROW:
                    write_narrow_gradient(
                        z, classes, top, e, target, dz, scale, old, kept, update, out[1], out[3], out[4], out[5],
                        offset, out[6],
                    )  # fmt: skip
                elif kind != NO_TARGET:
                    write_gradient_with_target(
                        z, classes, top, e, target, dz, scale, old, kept, update, out[1], out[3], out[4], out[5],
                        offset, out[6],
                    )  # fmt: skip
                elif needs & ENTROPY_TERM:
                    write_gradient_with_entropy(z, classes, top, e, dz, scale, out[1], out[4], offset, out[6])
                else:
                    write_gradient(classes, e, dz, scale, out[1], out[6])
                if out[2] != 0:  # then there is a label
                    x, p = distance(as_float32(z)[y], top), scale * as_float32(e)[y]
                    as_float32(dz)[y] = gradient_at(x, p, t, out[1], out[2], out[3], out[4], out[5], offset, out[6])
                if storage != FLOAT32:
                    if update and (kept < 1 or role[b] & FRESH):
                        record = target_ + size * index[b]
                        write_row(storage, record, classes, places, target, lists_, seed, as_int64(step_)[0], index[b])
                elif kind == TABLE and role[b] & FRESH and not finite:
                    fill(target, classes, -1.0)
    keep_alive(exps)
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
    "int64,float64,int64,int64,int64,int64,int64,int64,int64,int64,int64,float64,int64)",
    cache=True,
    nogil=True,
)
def whole_pass(
    batch, classes, logits, logits_stride, label, index, kind, target, num_samples, errors, one_hot, use, keep, weight,
    coefficients, parameters, needs, grad_scale, loss, dlogits, stats, prediction, storage, places, seed, step, slots,
    divisor, result,
):  # fmt: skip
    """All of it in one call and one thread: a small batch costs more to call for than to compute."""
    role, cursor = np.empty(batch, np.int8), np.zeros(1, np.int64)
    role_, table = role.ctypes.data, target if kind == TABLE else 0
    start = one_hot and storage == FLOAT32  # of the other formats the pass takes care
    prepare(batch, classes, label, index, table, num_samples, errors, start, False, role_, slots)
    process_rows(
        cursor.ctypes.data, batch, batch, classes, logits, logits_stride, label, index, role_, kind, target, use, keep,
        weight, coefficients, parameters, needs, grad_scale, loss, dlogits, stats, prediction, storage, places, one_hot,
        seed, step, False,
    )  # fmt: skip
    keep_alive(role)
    keep_alive(cursor)
    if result != 0:
        reduce_rows(loss, batch, divisor, result)
