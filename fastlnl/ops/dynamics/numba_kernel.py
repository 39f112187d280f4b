"""dynamics on the CPU: one walk backwards, for what the last occurrence of an id decides, and one forwards."""

import math
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from fastlnl.cpu.native import as_float32, as_int64, prefetch
from fastlnl.ops.dynamics import Columns
from fastlnl.ops.dynamics.layout import (
    CHANGED,
    CORRECT,
    CURSOR,
    DEVIATIONS,
    EMA,
    EPOCH,
    ERRORS,
    FULL,
    HISTORY_LIMIT,
    LOG_ODDS_LIMIT,
    LOSS,
    LOSS_LIMIT,
    LOSS_UNIT,
    MARGINS,
    MEAN,
    ROWS,
    SKIPPED,
    WORDS,
)
from fastlnl.ops.row_loss.contract import PADDING

BYTES = 4 * WORDS
AHEAD = 16  # records lie anywhere: each is asked for this many rows before
ENTERED = 1 << 31  # set beside the last prediction once a later occurrence of the id has set the moving average
LAST = ENTERED - 1
TOP_BITS = -0x7FFF7FFF7FFF8000  # of the four counts in words 0 and 1
LEARNED = 0xFFFF << 32
LAST_WRONG = -1 << 48
_f = np.float32


@intrinsic
def store_float16(typing_context: Any, address: Any, value: Any) -> Any:
    """Round a float32 to the float16 at an address."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        half = ir.HalfType()
        builder.store(builder.fptrunc(args[1], half), builder.inttoptr(args[0], half.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), codegen


@njit(inline="always")
def log_odds_of(p):
    p = min(max(p, _f(1e-3)), _f(1 - 1e-3))  # no log(0), and wider than the limit
    return min(max(_f(math.log(p / (_f(1.0) - p))), _f(-LOG_ODDS_LIMIT)), _f(LOG_ODDS_LIMIT))


@njit(inline="always")
def add_counts(counts, more):
    """Four counts of 16 bits each plus as many; they stop at the end."""
    if counts & TOP_BITS == 0:
        return counts + more
    result = 0
    for shift in range(0, 64, 16):
        result |= min((counts >> shift & FULL) + (more >> shift & FULL), FULL) << shift
    return result


@njit(
    "void(int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,float32,int64,boolean,boolean)",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def enter_batch(
    batch, num_samples, num_classes, records, counters_, index_, label_, prediction_, second_, numbers, mean_row,
    ema_row, kept_row, momentum, history, half, log_odds,
):  # fmt: skip
    """A record is read as two integers of 64 bits, words 0-1 and 2-3, and four numbers."""
    counters, index, label, prediction = as_int64(counters_), as_int64(index_), as_int64(label_), as_int64(prediction_)
    second, nll, margin = as_int64(second_), as_float32(numbers), as_float32(numbers + 12 * batch)
    mean_of, ema_of = as_float32(numbers + 4 * batch * mean_row), as_float32(numbers + 4 * batch * ema_row)
    kept = as_float32(numbers + 4 * batch * kept_row)
    ring = counters[CURSOR] * num_samples
    taken, rows, refused, first_refused = np.empty(batch, np.int32), 0, 0, -1
    for b in range(batch - 1, -1, -1):
        if b >= AHEAD:
            prefetch(records + BYTES * index[b - AHEAD])
        i = index[b]
        if not (0 <= i < num_samples and 0 <= label[b] < num_classes):
            refused += 1
            first_refused = first_refused if i == PADDING else b
            continue
        if not math.isfinite(np.float64(nll[b]) + margin[b] + mean_of[b] + ema_of[b]):
            continue
        taken[rows] = b
        rows += 1
        integers, numbers = as_int64(records + BYTES * i), as_float32(records + BYTES * i)
        if integers[1] & ENTERED != 0:
            continue
        integers[1] |= ENTERED
        v = ema_of[b]
        numbers[EMA] = v if integers[0] & FULL == 0 else momentum * numbers[EMA] + (_f(1.0) - momentum) * v
        if history != 0:
            h = log_odds_of(kept[b]) if log_odds else min(kept[b], _f(HISTORY_LIMIT))
            if half:
                store_float16(history + 2 * (ring + i), h)
            else:
                as_float32(history)[ring + i] = h
    if first_refused >= 0 and counters[ERRORS] == 0:
        i, y = index[first_refused], label[first_refused]
        bad_label = not 0 <= y < num_classes
        counters[ERRORS], counters[ERRORS + 1] = 1 if bad_label else 2, first_refused
        counters[ERRORS + 2], counters[ERRORS + 3] = i, y if bad_label else i

    changed, errors, loss = 0, 0, 0
    learns = min(counters[EPOCH] + 1, FULL) << 32
    for t in range(rows - 1, -1, -1):
        b = taken[t]
        y, k, record = label[b], prediction[b], records + BYTES * index[b]
        integers, numbers = as_int64(record), as_float32(record)
        counts, last = integers[0], integers[1] & LAST
        wrong = 1 if k != y else 0
        flip = (1 if last != 0 else 0) & (1 if last != k + 1 else 0)
        forgotten = wrong & (1 if last == y + 1 else 0)
        events = wrong + (1 if second_ != 0 and second[b] != y else 0)
        if counts & FULL != FULL:
            x, mean = mean_of[b], numbers[MEAN]
            moved = mean + (x - mean) / _f((counts & FULL) + 1)
            numbers[DEVIATIONS] += (x - mean) * (x - moved)
            numbers[MEAN] = moved
            numbers[MARGINS] += margin[b]
        counts = add_counts(counts, 1 | events << 16 | flip << 32 | forgotten << 48)
        learned = integers[1] & LEARNED
        at_wrong = learned | counts << 48
        at_right = integers[1] & LAST_WRONG | (learns if learned == 0 else learned)
        integers[0] = counts
        integers[1] = k + 1 | (at_wrong if wrong == 1 else at_right)
        changed, errors = changed + flip, errors + wrong
        loss += np.int64(min(nll[b], _f(LOSS_LIMIT)) * _f(1 / LOSS_UNIT))
    counters[ROWS] += rows
    counters[CHANGED] += changed
    counters[CORRECT] += rows - errors
    counters[LOSS] += loss
    counters[SKIPPED] += batch - refused - rows


def dynamics(
    records: Tensor, counters: Tensor, index: Tensor, label: Tensor, prediction: Tensor, second: Tensor | None,
    numbers: Tensor, columns: Columns, momentum: float, history: Tensor | None, num_classes: int,
) -> None:  # fmt: skip
    enter_batch(
        index.shape[0], records.shape[0], num_classes, records.data_ptr(), counters.data_ptr(), index.data_ptr(),
        label.data_ptr(), prediction.data_ptr(), 0 if second is None else second.data_ptr(), numbers.data_ptr(),
        columns.mean, columns.ema, columns.history, momentum, 0 if history is None else history.data_ptr(),
        history is not None and history.dtype == torch.float16, columns.log_odds,
    )  # fmt: skip
