"""The kernels of two_view_loss on the CPU; every argument is a number, tensors come as the addresses of their memory.

Rows whose id comes once count their own events. Ids that come again are counted beforehand, from a look at the
predictions of just these rows, so that the others need no pass of their own. "batchmean" takes two passes: the first
counts and measures, the second knows the means over the batch and writes.
"""

import math

import numpy as np
from numba import njit

from fastlnl.cpu.native import as_float32, as_float64, as_int8, as_int64, keep, prefetch, take
from fastlnl.cpu.rows import fill, first_column, largest_between
from fastlnl.cpu.words import as_int32
from fastlnl.ops.row_loss.contract import PADDING
from fastlnl.ops.row_loss.numba_pass import reduce_rows
from fastlnl.ops.two_view_loss import FULL
from fastlnl.ops.two_view_loss.numba_sweeps import (
    HIGH,
    LOW,
    apart_sums,
    both_sums,
    highest_mean,
    mean_sums,
    write_gradients,
)

ONCE, AGAIN, NOTHING = 0, 1, 2  # roles of a batch position: its id comes once, comes again, is none
PLAIN, SAMPLE, MEASURE, COUPLED = 0, 1, 2, 3  # what a pass does about the entropy; the last two are "batchmean"
NUMBERS = 8  # a row keeps between its phases
_f = np.float32


@njit(inline="always")
def add_events(count, events):
    return min(np.int64(count) + events, FULL)


@njit(inline="always")
def cell_of(count, y, groups, depth):
    """Where the two weights of a group and count stand in the table."""
    return 2 * ((y if groups > 1 else 0) * depth + min(max(np.int64(count), 0), depth - 1))


@njit(inline="always")
def inside(p):
    """p where the clamp leaves it alone, elsewhere 0."""
    return np.float64(p) if LOW <= p <= HIGH else 0.0


@njit(inline="always")
def at_label(e, scale, level, h, apart, tau):
    """One entry of a gradient at the given label."""
    p = scale * e
    free = LOW <= e * _f(scale) <= HIGH
    return p * (level + (h if free else 0.0)) - tau + apart


@njit
def is_missed(z, classes, y):
    """Whether the lowest class that attains the maximum is not y."""
    top = largest_between(z, 0, classes)
    return first_column(z, classes, top) != y


@njit(
    "void(int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,boolean,int64,int64,int64,"
    "int64)",
    cache=True,
    nogil=True,
)
def prepare(
    batch, classes, weak, weak_stride, strong, strong_stride, label_, index_, count_, num_samples, table_, groups,
    depth, before, weights_, errors_, role_, slots,
):  # fmt: skip
    """Give each position its role; report the first label or id out of range; count and look up ids that repeat."""
    label, index, errors, role = as_int64(label_), as_int64(index_), as_int64(errors_), as_int8(role_)
    count, table, weights = as_int32(count_), as_float32(table_), as_float32(weights_)
    seen = np.full(slots, -1, np.int32)  # open addressing, at most half full
    again = 0
    for b in range(batch):
        i, y = index[b], label[b]
        role[b] = NOTHING
        if i == PADDING:
            continue
        if not (0 <= y < classes and 0 <= i < num_samples):
            if errors[0] == 0:
                wrong_label = not 0 <= y < classes
                errors[0], errors[1], errors[2], errors[3] = 1 if wrong_label else 2, b, i, y if wrong_label else i
            continue
        slot = (i * 0x9E3779B1) & (slots - 1)
        while seen[slot] >= 0 and index[seen[slot]] != i:
            slot = (slot + 1) & (slots - 1)
        if seen[slot] < 0:
            seen[slot], role[b] = b, ONCE
        else:
            role[b], role[seen[slot]] = AGAIN, AGAIN
            again += 1
    if again == 0:
        return
    for step in range(2):
        for b in range(batch):
            if role[b] != AGAIN:
                continue
            i, y = index[b], label[b]
            if (step == 1) == before:
                cell = cell_of(count[i], y, groups, depth)
                weights[2 * b], weights[2 * b + 1] = table[cell], table[cell + 1]
            else:
                w, s = weak + 4 * b * weak_stride, strong + 4 * b * strong_stride
                if math.isfinite(apart_sums(w, s, classes)[0]):
                    events = (1 if is_missed(w, classes, y) else 0) + (1 if is_missed(s, classes, y) else 0)
                    count[i] = add_events(count[i], events)


@njit(
    "void(int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,boolean,float64,int64,"
    "int64,int64,int64,int64,int64,int64,int64)",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def process_rows(
    cursor, chunk, mode, batch, classes, weak, weak_stride, strong, strong_stride, label_, index_, count_, table_,
    groups, before, grad_scale, depth, weights_, terms_, means_, loss_, dlogits, prediction_, role_,
):  # fmt: skip
    """Rows of the batch, `chunk` at a time, until the cursor is past the end; see `mode` above.

    A few rows at a time go through their phases together: sums over the columns; prediction, counter and weights; the
    mean of the views; gradients.
    """
    label, index, count, role = as_int64(label_), as_int64(index_), as_int32(count_), as_int8(role_)
    table, weights, terms, means = as_float32(table_), as_float32(weights_), as_float64(terms_), as_float64(means_)
    loss, prediction = as_float32(loss_), as_int64(prediction_)
    group, width = max(1, min(8, 1024 // classes)), classes + 16
    scratch, numbers = np.empty(3 * group * width, np.float32), np.empty(group * NUMBERS, np.float64)
    scratch_, numbers_ = scratch.ctypes.data, numbers.ctypes.data
    while True:
        begin = take(cursor, chunk)
        if begin >= batch:
            break
        end = min(begin + chunk, batch)
        for first in range(begin, end, group):
            last = min(first + group, end)
            for b in range(first, last):
                if role[b] == NOTHING:
                    continue
                if mode != COUPLED:
                    prefetch(count_ + 4 * index[b])
                w, s = weak + 4 * b * weak_stride, strong + 4 * b * strong_stride
                row, e_w = as_float64(numbers_ + 8 * NUMBERS * (b - first)), scratch_ + 12 * width * (b - first)
                top_w, top_s = largest_between(w, 0, classes), largest_between(s, 0, classes)
                row[0], row[1] = top_w, top_s
                row[2], row[3], row[4], row[5] = both_sums(w, s, classes, top_w, top_s, e_w, e_w + 4 * width)
            for b in range(first, last):
                if role[b] == NOTHING:
                    if mode != COUPLED:
                        prediction[b], prediction[batch + b] = 0, 0
                    continue
                w, s, y = weak + 4 * b * weak_stride, strong + 4 * b * strong_stride, label[b]
                row = as_float64(numbers_ + 8 * NUMBERS * (b - first))
                finite = math.isfinite(row[2] + row[3] + row[4])
                if mode != COUPLED:
                    k_w, k_s = 0, 0
                    if finite:
                        k_w, k_s = first_column(w, classes, _f(row[0])), first_column(s, classes, _f(row[1]))
                    prediction[b], prediction[batch + b] = k_w, k_s
                    if role[b] == ONCE:
                        i = index[b]
                        old = count[i]
                        events = (1 if k_w != y else 0) + (1 if k_s != y else 0)
                        new = add_events(old, events if finite else 0)
                        count[i] = new
                        cell = cell_of(new if before else old, y, groups, depth)
                        weights[2 * b], weights[2 * b + 1] = table[cell], table[cell + 1]
                tau, eps = np.float64(weights[2 * b]), np.float64(weights[2 * b + 1])
                nll = math.log(row[2]) - (np.float64(as_float32(w)[y]) - row[0])
                nll += math.log(row[3]) - (np.float64(as_float32(s)[y]) - row[1])
                value = tau * nll + (eps * row[5] / classes if eps != 0 else 0.0)
                row[6], row[7] = value if finite else np.nan, 2 * eps / classes
                row[2], row[3] = 1 / row[2], 1 / row[3]
            for b in range(first, last):
                if role[b] == NOTHING:
                    if mode == MEASURE:
                        terms[2 * b], terms[2 * b + 1] = 0.0, 0.0
                    else:
                        loss[b] = 0.0
                        fill(dlogits + 4 * b * classes, classes, 0.0)
                        fill(dlogits + 4 * (batch + b) * classes, classes, 0.0)
                    continue
                row, e_w = as_float64(numbers_ + 8 * NUMBERS * (b - first)), scratch_ + 12 * width * (b - first)
                e_s, logs, scale_w, scale_s = e_w + 4 * width, e_w + 8 * width, row[2], row[3]
                s_q, top_q, inner_w, inner_s = mean_sums(classes, e_w, e_s, scale_w, scale_s, logs)
                tau, top = np.float64(weights[2 * b]), np.float64(top_q)
                uncertain = (tau - 1) * s_q  # (1 - tau) H
                if mode == MEASURE:
                    finite = not math.isnan(row[6])
                    terms[2 * b], terms[2 * b + 1] = top if finite else np.nan, uncertain if finite else np.nan
                    continue
                factor, at_top = 1.0, 0.0
                if mode == SAMPLE:
                    factor, at_top = top, uncertain
                elif mode == COUPLED:
                    factor, at_top = means[0], means[1]
                loss[b] = row[6] + factor * uncertain
                # half of g = at_top [u = k] - factor (1 - tau) (log q_u + 1)
                slope, half = 0.5 * factor * (tau - 1), 0.5 * at_top
                inner_w, inner_s = slope * inner_w, slope * inner_s  # sum p h
                p_w, p_s, k = 0.0, 0.0, 0
                if at_top != 0:
                    k = highest_mean(classes, e_w, e_s, scale_w, scale_s, top_q)
                    p_w, p_s = inside(as_float32(e_w)[k] * _f(scale_w)), inside(as_float32(e_s)[k] * _f(scale_s))
                    inner_w, inner_s = inner_w + half * p_w, inner_s + half * p_s
                scale = np.nan if math.isnan(row[6]) else grad_scale
                level_w, level_s = scale * (tau - inner_w), scale * (tau - inner_s)
                slope, pull, half = scale * slope, scale * row[7], scale * half
                w, s, y = weak + 4 * b * weak_stride, strong + 4 * b * strong_stride, label[b]
                dweak, dstrong = dlogits + 4 * b * classes, dlogits + 4 * (batch + b) * classes
                write_gradients(
                    w, s, classes, e_w, e_s, scale_w, scale_s, logs, dweak, dstrong, level_w, level_s, slope, pull
                )
                if at_top != 0:
                    as_float32(dweak)[k] += half * p_w
                    as_float32(dstrong)[k] += half * p_s
                # At the label p - 1 often is small: once more, in float64.
                apart = pull * (np.float64(as_float32(s)[y]) - as_float32(w)[y])
                h, given = slope * as_float32(logs)[y] + (half if at_top != 0 and k == y else 0.0), scale * tau
                as_float32(dweak)[y] = at_label(as_float32(e_w)[y], scale_w, level_w, h, -apart, given)
                as_float32(dstrong)[y] = at_label(as_float32(e_s)[y], scale_s, level_s, h, apart, given)
    keep(scratch)
    keep(numbers)


@njit("void(int64,int64,int64,int64)", cache=True, nogil=True, error_model="numpy")
def average(batch, terms_, role_, means_):
    """Means of max q and of (1 - tau) H over the rows that count, in batch order."""
    terms, role, means = as_float64(terms_), as_int8(role_), as_float64(means_)
    rows, top, uncertain = 0, 0.0, 0.0
    for b in range(batch):
        if role[b] != NOTHING:
            rows, top, uncertain = rows + 1, top + terms[2 * b], uncertain + terms[2 * b + 1]
    means[0], means[1] = top / max(rows, 1), uncertain / max(rows, 1)


@njit(
    "void(int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,boolean,float64,int64,"
    "int64,int64,int64,int64,float64,int64)",
    cache=True,
    nogil=True,
)
def whole_pass(
    mode, batch, classes, weak, weak_stride, strong, strong_stride, label, index, count, table, num_samples, depth,
    groups, before, grad_scale, errors, loss, dlogits, prediction, slots, divisor, result,
):  # fmt: skip
    """All of it in one call and one thread: a small batch costs more to call for than to compute."""
    role, weights, cursor = np.empty(batch, np.int8), np.empty(2 * batch, np.float32), np.zeros(1, np.int64)
    terms, means = np.empty(2 * batch if mode == MEASURE else 0), np.zeros(2)
    role_, weights_, terms_, means_ = role.ctypes.data, weights.ctypes.data, terms.ctypes.data, means.ctypes.data
    prepare(
        batch, classes, weak, weak_stride, strong, strong_stride, label, index, count, num_samples, table, groups,
        depth, before, weights_, errors, role_, slots,
    )  # fmt: skip
    for turn in range(2 if mode == MEASURE else 1):
        if turn == 1:
            average(batch, terms_, role_, means_)
            cursor[0] = 0
        process_rows(
            cursor.ctypes.data, batch, COUPLED if turn == 1 else mode, batch, classes, weak, weak_stride, strong,
            strong_stride, label, index, count, table, groups, before, grad_scale, depth, weights_, terms_, means_,
            loss, dlogits, prediction, role_,
        )  # fmt: skip
    if result != 0:
        reduce_rows(loss, batch, divisor, result)
    keep(role)
    keep(weights)
    keep(cursor)
    keep(terms)
    keep(means)
