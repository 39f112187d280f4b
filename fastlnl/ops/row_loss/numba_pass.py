"""The kernels of row_loss on the CPU; every argument is a number, tensors come as the addresses of their memory.

A book (`contract.Book`) takes the statistics as they come. Its block is int64 words: the address of a C function, words
that the pass fills in, and from `OWN` on the book's own. The function is called with the address of a copy of the
block that belongs to one thread, and

    first, last:  enter the rows first..last-1; no two of the batch have one id, other threads may be in other rows
    first, -last: these are the rows that this thread enters next; ask the memory for what they need
    DONE, 0:      this thread has no more rows
    CHECK, 0:     before the rows go to several threads: report the first one of the batch that has to be refused
    ALL, 0:       enter the whole batch, where ids may repeat
"""

import math

import numpy as np
from numba import njit

from fastlnl.cpu.narrow_rows import NARROW, distance, narrow_sums, write_narrow_gradient
from fastlnl.cpu.native import as_float32, as_float64, as_int8, as_int64, call, prefetch, take
from fastlnl.cpu.native import keep as keep_alive
from fastlnl.cpu.places import largest_with_column
from fastlnl.cpu.rows import (
    fill,
    gradient_at,
    largest_between,
    largest_except,
    softmax_sums,
    softmax_target_sums,
    write_gradient,
    write_gradient_with_entropy,
    write_gradient_with_target,
)
from fastlnl.ops.row_loss.contract import BOOK_WORDS, NUMBERS
from fastlnl.ops.row_loss.numba_coefficients import ENTROPY_TERM, P_LABEL
from fastlnl.ops.row_loss.numba_storage import (
    DEFERRED,
    FLOAT32,
    FRESH,
    INVALID,
    NO_TARGET,
    READ_ONLY,
    ROLE,
    TABLE,
    open_row,
    prepare,
    record_bytes,
    write_row,
)

STRETCH = 32  # rows that are entered in a book together, once the memory has had the time to bring what they need
AHEAD_BYTES = 2048  # rows of the label memory lie anywhere: the start of each is asked for some rows before
FUNCTION, BATCH, INDEX, LABEL, STATISTICS, STRIDE, PREDICTION, BASE, OWN = range(9)  # row b is column b - BASE
DONE, CHECK, ALL = -1, -2, -3


@njit
def open_block(source, block_, batch, index, label, numbers, stride, prediction):
    """A thread's copy of a book's block."""
    source, block = as_int64(source), as_int64(block_)
    for i in range(BOOK_WORDS):
        block[i] = source[i]
    block[BATCH], block[INDEX], block[LABEL] = batch, index, label
    block[STATISTICS], block[STRIDE], block[PREDICTION], block[BASE] = numbers, stride, prediction, 0


@njit("void(int64,int64,int64,int64,int64,int64,int64)", cache=True, nogil=True)
def tell_book(book, task, batch, index, label, numbers, prediction):
    """CHECK a batch, or enter it with ALL that (5, B) numbers and (B,) predictions say."""
    block = np.empty(BOOK_WORDS, np.int64)
    block_ = block.ctypes.data
    open_block(book, block_, batch, index, label, numbers, batch, prediction)
    call(block[FUNCTION], block_, task, 0)
    keep_alive(block)


@njit(
    "void(int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,float64,float64,int64,int64,int64,int64,"
    "float64,int64,int64,int64,int64,int64,int64,boolean,int64,int64,int64,boolean)",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def process_rows(
    cursor, chunk, batch, classes, logits, logits_stride, label_, index_, role_, kind, target_, use, keep,
    weight_, coefficients, parameters, needs, grad_scale, loss_, dlogits, stats_, prediction_, storage, places,
    one_hot, seed, step_, book_, deferred,
):  # fmt: skip
    """Rows of the batch, `chunk` at a time, until the cursor is past the end; statistics only without dlogits.

    A few rows at a time go through three phases: sums over the columns, coefficients, gradient. The phases of one row
    wait for each other; those of neighbours do not, and the processor overlaps them. Rows of a label memory that is
    not float32 are decoded in the first phase and written back in the last. A book takes the statistics of a stretch
    of groups at once.
    """
    label, index, role = as_int64(label_), as_int64(index_), as_int8(role_)
    weight, loss = as_float32(weight_), as_float32(loss_)
    group, width = max(1, min(8, 2048 // classes)), classes + 16
    spare = 0 if storage == FLOAT32 else group * width + 2 * (places + 17)
    exps, numbers = np.empty(group * width + spare, np.float32), np.zeros((2 * group + 1) * 8, np.float64)
    targets, place_of_top = np.zeros(group, np.int64), np.zeros(group, np.int64)
    size = record_bytes(storage, classes, places)
    exps_, sums_ = exps.ctypes.data, numbers.ctypes.data
    decoded_, lists_ = exps_ + 4 * group * width, exps_ + 8 * group * width
    out_, statistics_ = sums_ + 64 * group, sums_ + 128 * group
    statistics = as_float64(statistics_)
    statistics[7] = classes
    asked, stretch = stats_ != 0 or book_ != 0, group * (STRETCH // group)
    held = stretch if book_ != 0 else 0  # statistics that nobody keeps stay with their stretch
    own, columns = np.empty(len(NUMBERS) * held, np.float32), np.empty(held, np.int64)
    block = np.empty(BOOK_WORDS, np.int64)
    stride, base = batch, 0  # row b is column b - base
    if book_ != 0:
        stride, stats_, prediction_ = held, own.ctypes.data, columns.ctypes.data
        open_block(book_, block.ctypes.data, batch, index_, label_, stats_, stride, prediction_)
    stats, prediction = as_float32(stats_), as_int64(prediction_)
    while True:
        begin = take(cursor, chunk)
        if begin >= batch:
            break
        end = min(begin + chunk, batch)
        for first in range(begin, end, group):
            last = min(first + group, end)
            if book_ != 0 and (first - begin) % stretch == 0:
                base = block[BASE] = first
                call(block[FUNCTION], block.ctypes.data, first, -min(first + stretch, end))
            for b in range(first, last):
                if kind == TABLE and b + group < batch and role[b + group] != INVALID:
                    ahead = target_ + size * index[b + group]
                    for line in range(0, min(size, AHEAD_BYTES), 64):
                        prefetch(ahead + line)
                task = role[b] & ROLE
                if task == INVALID or (task == DEFERRED) != deferred:
                    continue
                z, e, s = logits + 4 * b * logits_stride, exps_ + 4 * width * (b - first), sums_ + 64 * (b - first)
                sums = as_float64(s)
                top, place_of_top[b - first] = (
                    largest_with_column(z, classes) if asked else (largest_between(z, 0, classes), 0)
                )
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
                    if asked:
                        for i in range(len(NUMBERS)):
                            stats[i * stride + b - base] = 0.0
                        prediction[b - base] = 0
                    continue
                z, y = logits + 4 * b * logits_stride, label[b] if label_ != 0 else -1
                sums, out = as_float64(sums_ + 64 * (b - first)), as_float64(out_ + 64 * (b - first))
                top, s_e, s_ex, s_x = sums[0], sums[1], sums[2], sums[3]
                scale, log_sum = 1.0 / s_e, math.log(s_e)
                entropy = log_sum - s_ex * scale
                nll = log_sum - (max(np.float64(as_float32(z)[y]) - top, -1e30) if y >= 0 else 0.0)
                finite = math.isfinite(s_e + s_x)
                if asked:
                    i, z_y = b - base, np.float64(as_float32(z)[y])
                    others = top if z_y < top else largest_except(z, classes, y)
                    prediction[i] = place_of_top[b - first]
                    stats[i], stats[stride + i] = nll, scale * as_float32(exps_ + 4 * width * (b - first))[y]
                    stats[2 * stride + i], stats[4 * stride + i] = scale, entropy
                    stats[3 * stride + i] = z_y - others if classes > 1 else 0.0
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
            if book_ != 0 and (last == end or (last - begin) % stretch == 0):
                call(block[FUNCTION], block.ctypes.data, base, last)
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
    if book_ != 0:
        call(block[FUNCTION], block.ctypes.data, DONE, 0)
    keep_alive(exps)
    keep_alive(numbers)
    keep_alive(own)
    keep_alive(columns)
    keep_alive(block)


@njit("void(int64,int64,float64,int64)", cache=True, nogil=True)
def reduce_rows(loss_, batch, divisor, result):
    """Sum of the losses, in float64 and in batch order, over `divisor`."""
    loss, total = as_float32(loss_), 0.0
    for b in range(batch):
        total += loss[b]
    as_float32(result)[0] = total / divisor


@njit(
    "void(int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,boolean,float64,float64,int64,int64,int64,"
    "int64,float64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,float64,int64)",
    cache=True,
    nogil=True,
)
def whole_pass(
    batch, classes, logits, logits_stride, label, index, kind, target, num_samples, errors, one_hot, use, keep, weight,
    coefficients, parameters, needs, grad_scale, loss, dlogits, stats, prediction, storage, places, seed, step, book,
    slots, divisor, result,
):  # fmt: skip
    """All of it in one call and one thread: a small batch costs more to call for than to compute."""
    role, cursor, table = np.empty(batch, np.int8), np.zeros(1, np.int64), target if kind == TABLE else 0
    role_, start = role.ctypes.data, one_hot and storage == FLOAT32  # of the other formats the pass takes care
    _, unfit = prepare(
        batch, classes, label, index, table, num_samples, errors, start, False, book != 0, role_, slots
    )  # fmt: skip
    late = book != 0 and unfit > 0  # the book takes the batch as a whole
    numbers = np.empty(len(NUMBERS) * batch if late and stats == 0 else 0, np.float32)
    columns = np.empty(batch if late and stats == 0 else 0, np.int64)
    if late and stats == 0:
        stats, prediction = numbers.ctypes.data, columns.ctypes.data
    losses = np.empty(batch if loss == 0 and result != 0 else 0, np.float32)  # of which only the sum is asked for
    if loss == 0 and result != 0:
        loss = losses.ctypes.data
    process_rows(
        cursor.ctypes.data, batch, batch, classes, logits, logits_stride, label, index, role_, kind, target, use, keep,
        weight, coefficients, parameters, needs, grad_scale, loss, dlogits, stats, prediction, storage, places, one_hot,
        seed, step, 0 if late else book, False,
    )  # fmt: skip
    if late:
        tell_book(book, ALL, batch, index, label, stats, prediction)
    if result != 0:
        reduce_rows(loss, batch, divisor, result)
    keep_alive(role)
    keep_alive(cursor)
    keep_alive(numbers)
    keep_alive(columns)
    keep_alive(losses)
