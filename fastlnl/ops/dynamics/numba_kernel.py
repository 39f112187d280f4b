"""dynamics on the CPU: one walk backwards, for what the last occurrence of an id decides, and one forwards.

Where no two rows of a batch have one id, the row pass calls `enter_rows` for a few rows at a time instead, as soon as
it has their statistics (`ops.row_loss.numba_pass`): one walk, and the statistics never leave the first-level cache.
"""

import math
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic
from torch import Tensor

from fastlnl.cpu.native import as_float32, as_float64, as_int64, prefetch, take
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
from fastlnl.ops.row_loss.numba_pass import (
    ALL,
    BASE,
    BATCH,
    CHECK,
    DONE,
    FUNCTION,
    INDEX,
    LABEL,
    OWN,
    PREDICTION,
    STATISTICS,
    STRIDE,
)

BYTES = 4 * WORDS
AHEAD = 16  # records lie anywhere: each is asked for this many rows before
ENTERED = 1 << 31  # set beside the last prediction once a later occurrence of the id has set the moving average
LAST = ENTERED - 1
TOP_BITS = -0x7FFF7FFF7FFF8000  # of the four counts in words 0 and 1
LEARNED = 0xFFFF << 32
LAST_WRONG = -1 << 48
# Words of a block that are the book's own; momentum is a float64. The last five count in a thread's copy.
(NUM_SAMPLES, NUM_CLASSES, RECORDS, COUNTED, HISTORY, HALF, LOG_ODDS, MEAN_ROW, EMA_ROW, KEPT_ROW, MOMENTUM, MY_ROWS,
 MY_CHANGED, MY_CORRECT, MY_LOSS, MY_SKIPPED) = range(OWN, OWN + 16)  # fmt: skip
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
def move_average(record, v, momentum, history, half, log_odds, place, kept):
    """The moving average, and the sample's place in the ring if there is one."""
    numbers = as_float32(record)
    first = as_int64(record)[0] & FULL == 0
    numbers[EMA] = v if first else momentum * numbers[EMA] + (_f(1.0) - momentum) * v
    if history != 0:
        h = log_odds_of(kept) if log_odds else min(kept, _f(HISTORY_LIMIT))
        if half:
            store_float16(history + 2 * place, h)
        else:
            as_float32(history)[place] = h


@njit(inline="always")
def add_counts(counts, more):
    """Four counts of 16 bits each plus as many; they stop at the end."""
    if counts & TOP_BITS == 0:
        return counts + more
    result = 0
    for shift in range(0, 64, 16):
        result |= min((counts >> shift & FULL) + (more >> shift & FULL), FULL) << shift
    return result


@njit(inline="always")
def count_in(record, y, k, second_wrong, x, margin, learns):
    """Everything else of a presentation; returns whether the prediction changed and whether it is wrong.

    A record is read as two integers of 64 bits, words 0-1 and 2-3, and four numbers.
    """
    integers, numbers = as_int64(record), as_float32(record)
    counts, last = integers[0], integers[1] & LAST
    wrong = 1 if k != y else 0
    flip = (1 if last != 0 else 0) & (1 if last != k + 1 else 0)
    forgotten = wrong & (1 if last == y + 1 else 0)
    if counts & FULL != FULL:
        mean = numbers[MEAN]
        moved = mean + (x - mean) / _f((counts & FULL) + 1)
        numbers[DEVIATIONS] += (x - mean) * (x - moved)
        numbers[MEAN] = moved
        numbers[MARGINS] += margin
    counts = add_counts(counts, 1 | (wrong + second_wrong) << 16 | flip << 32 | forgotten << 48)
    learned = integers[1] & LEARNED
    at_wrong = learned | counts << 48
    at_right = integers[1] & LAST_WRONG | (learns if learned == 0 else learned)
    integers[0] = counts
    integers[1] = k + 1 | (at_wrong if wrong == 1 else at_right)
    return flip, wrong


@njit(inline="always")
def fixed_point(nll):
    return np.int64(min(nll, _f(LOSS_LIMIT)) * _f(1 / LOSS_UNIT))


@njit
def report(counters, b, i, y, num_classes):
    """The first row that is refused stays in the error word."""
    if counters[ERRORS] == 0:
        bad_label = not 0 <= y < num_classes
        counters[ERRORS], counters[ERRORS + 1] = 1 if bad_label else 2, b
        counters[ERRORS + 2], counters[ERRORS + 3] = i, y if bad_label else i


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
        integers = as_int64(records + BYTES * i)
        if integers[1] & ENTERED != 0:
            continue
        integers[1] |= ENTERED
        move_average(records + BYTES * i, ema_of[b], momentum, history, half, log_odds, ring + i, kept[b])
    if first_refused >= 0:
        report(counters, first_refused, index[first_refused], label[first_refused], num_classes)

    changed, errors, loss = 0, 0, 0
    learns = min(counters[EPOCH] + 1, FULL) << 32
    for t in range(rows - 1, -1, -1):
        b = taken[t]
        y, record = label[b], records + BYTES * index[b]
        second_wrong = 1 if second_ != 0 and second[b] != y else 0
        flip, wrong = count_in(record, y, prediction[b], second_wrong, mean_of[b], margin[b], learns)
        changed, errors, loss = changed + flip, errors + wrong, loss + fixed_point(nll[b])
    counters[ROWS] += rows
    counters[CHANGED] += changed
    counters[CORRECT] += rows - errors
    counters[LOSS] += loss
    counters[SKIPPED] += batch - refused - rows


@cfunc("void(int64,int64,int64)", cache=True, error_model="numpy")
def enter_rows(block_, first, last):
    """Rows first..last-1 of a batch in which no id repeats, or another task of `numba_pass`."""
    block = as_int64(block_)
    batch, num_samples, num_classes, records = block[BATCH], block[NUM_SAMPLES], block[NUM_CLASSES], block[RECORDS]
    history, half, log_odds = block[HISTORY], block[HALF] != 0, block[LOG_ODDS] != 0
    numbers, stride, momentum = block[STATISTICS], 4 * block[STRIDE], _f(as_float64(block_)[MOMENTUM])
    counters, index, label = as_int64(block[COUNTED]), as_int64(block[INDEX]), as_int64(block[LABEL])
    if last < 0:
        for b in range(first, -last):
            prefetch(records + BYTES * index[b])
        return
    if first == DONE:
        take(block[COUNTED] + 8 * ROWS, block[MY_ROWS])
        take(block[COUNTED] + 8 * CHANGED, block[MY_CHANGED])
        take(block[COUNTED] + 8 * CORRECT, block[MY_CORRECT])
        take(block[COUNTED] + 8 * LOSS, block[MY_LOSS])
        take(block[COUNTED] + 8 * SKIPPED, block[MY_SKIPPED])
        return
    if first == CHECK:
        for b in range(batch):
            i, y = index[b], label[b]
            if i != PADDING and not (0 <= i < num_samples and 0 <= y < num_classes):
                report(counters, b, i, y, num_classes)
                break
        return
    if first == ALL:
        enter_batch(
            batch, num_samples, num_classes, records, block[COUNTED], block[INDEX], block[LABEL], block[PREDICTION], 0,
            numbers, block[MEAN_ROW], block[EMA_ROW], block[KEPT_ROW], momentum, history, half, log_odds,
        )  # fmt: skip
        return
    nll, margin = as_float32(numbers), as_float32(numbers + 3 * stride)
    mean_of, ema_of = as_float32(numbers + stride * block[MEAN_ROW]), as_float32(numbers + stride * block[EMA_ROW])
    kept = as_float32(numbers + stride * block[KEPT_ROW])
    prediction, ring, base = as_int64(block[PREDICTION]), counters[CURSOR] * num_samples, block[BASE]
    rows, changed, right, loss, skipped = 0, 0, 0, 0, 0
    learns = min(counters[EPOCH] + 1, FULL) << 32
    for b in range(first, last):
        i, y, t = index[b], label[b], b - base
        if not (0 <= i < num_samples and 0 <= y < num_classes):
            if i != PADDING:
                report(counters, b, i, y, num_classes)
            continue
        x, v = mean_of[t], ema_of[t]
        if not math.isfinite(np.float64(nll[t]) + margin[t] + x + v):
            skipped += 1
            continue
        record = records + BYTES * i
        move_average(record, v, momentum, history, half, log_odds, ring + i, kept[t])
        flip, wrong = count_in(record, y, prediction[t], 0, x, margin[t], learns)
        rows, changed, right, loss = rows + 1, changed + flip, right + 1 - wrong, loss + fixed_point(nll[t])
    block[MY_ROWS] += rows
    block[MY_CHANGED] += changed
    block[MY_CORRECT] += right
    block[MY_LOSS] += loss
    block[MY_SKIPPED] += skipped


def write_block(
    block: Tensor, records: Tensor, counters: Tensor, num_classes: int, columns: Columns, momentum: float,
    history: Tensor | None,
) -> None:  # fmt: skip
    """What `enter_rows` has to know of these records into `BOOK_WORDS` int64; good as long as nothing of it moves."""
    block.zero_()
    block[FUNCTION] = enter_rows.address
    own = (
        records.shape[0], num_classes, records.data_ptr(), counters.data_ptr(),
        0 if history is None else history.data_ptr(), history is not None and history.dtype == torch.float16,
        columns.log_odds, columns.mean, columns.ema, columns.history,
    )  # fmt: skip
    block[OWN : OWN + len(own)] = torch.tensor(own, dtype=torch.int64, device="cpu")
    block.view(torch.float64)[MOMENTUM] = momentum


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
