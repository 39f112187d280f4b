"""dynamics on the GPU: one thread a record, in one launch.

Of several occurrences of an id, the last one's thread serves all of them in order, as in `row_loss`; so no two threads
touch a record. Finding the occurrences reads the batch's ids, 8 B bytes, from the cache.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastlnl.ops.dynamics import Columns, layout
from fastlnl.ops.row_loss.triton_rows import TABLE, check_rows

ROWS, SCAN = 32, 64  # rows a program; ids it compares them with at a time
EPOCH, CURSOR, ERRORS = (tl.constexpr(n) for n in (layout.EPOCH, layout.CURSOR, layout.ERRORS))
TALLY = tl.constexpr(layout.ROWS)  # the first of five sums
WORDS, FULL = tl.constexpr(layout.WORDS), tl.constexpr(layout.FULL)
LOSS_LIMIT, PER_NAT = tl.constexpr(layout.LOSS_LIMIT), tl.constexpr(1 / layout.LOSS_UNIT)
LOG_ODDS_LIMIT, HISTORY_LIMIT = tl.constexpr(layout.LOG_ODDS_LIMIT), tl.constexpr(layout.HISTORY_LIMIT)
NOWHERE = tl.constexpr(2**31 - 1)


@triton.jit
def occurrences(sample, after, index, batch, SCAN: tl.constexpr):
    """Of the positions that hold the same id: the lowest above `after`, and the highest."""
    following, last = after * 0 + NOWHERE, after * 0 - 1
    for start in range(0, batch, SCAN):
        at = start + tl.arange(0, SCAN)
        ids = tl.load(index + at, mask=at < batch, other=-1)
        same = sample[:, None] == ids[None, :]
        above = same & (at[None, :] > after[:, None])
        following = tl.minimum(following, tl.min(tl.where(above, at[None, :], NOWHERE), 1))
        last = tl.maximum(last, tl.max(tl.where(same, at[None, :], -1), 1))
    return following, last


@triton.jit
def is_finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def low_half(word):
    return word & FULL


@triton.jit
def high_half(word):
    return (word >> 16) & FULL


@triton.jit
def dynamics_kernel(records, counters, index, label, prediction, second, numbers, history, batch, num_samples, momentum,
                    C: tl.constexpr, MEAN_ROW: tl.constexpr, EMA_ROW: tl.constexpr, KEPT_ROW: tl.constexpr,
                    SECOND: tl.constexpr, HISTORY: tl.constexpr, LOG_ODDS: tl.constexpr, ROWS: tl.constexpr,
                    SCAN: tl.constexpr):  # fmt: skip
    nll, margin = numbers, numbers + 3 * batch
    mean_of, ema_of, kept = numbers + MEAN_ROW * batch, numbers + EMA_ROW * batch, numbers + KEPT_ROW * batch
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < batch
    _label, sample, _valid = check_rows(
        rows.to(tl.int64), inside, label, index, counters + ERRORS, num_samples, C, True, True, TABLE
    )
    current, last_row = occurrences(sample, rows * 0 - 1, index, batch, SCAN)
    leads = inside & (sample >= 0) & (sample < num_samples) & (last_row == rows)
    record = records + sample * WORDS
    word = tl.load(record, mask=leads, other=0)
    visits, events = low_half(word), high_half(word)
    word = tl.load(record + 1, mask=leads, other=0)
    flips, forgotten = low_half(word), high_half(word)
    last = tl.load(record + 2, mask=leads, other=0) - 1
    word = tl.load(record + 3, mask=leads, other=0)
    learned, last_wrong = low_half(word), high_half(word)
    mean = tl.load(record + 4, mask=leads, other=0).to(tl.float32, bitcast=True)
    deviations = tl.load(record + 5, mask=leads, other=0).to(tl.float32, bitcast=True)
    old_ema = tl.load(record + 6, mask=leads, other=0).to(tl.float32, bitcast=True)
    margins = tl.load(record + 7, mask=leads, other=0).to(tl.float32, bitcast=True)
    learns = tl.minimum(tl.load(counters + EPOCH) + 1, FULL).to(tl.int32)
    ema, seen, value, none = old_ema, visits > 0, mean * 0.0, visits * 0
    entered, changed, correct, skipped, loss = none, none, none, none, sample * 0
    live = leads
    while tl.max(live.to(tl.int32), 0) > 0:
        y, k = tl.load(label + current, mask=live, other=-1), tl.load(prediction + current, mask=live, other=0)
        n, m = tl.load(nll + current, mask=live, other=0.0), tl.load(margin + current, mask=live, other=0.0)
        x, v = tl.load(mean_of + current, mask=live, other=0.0), tl.load(ema_of + current, mask=live, other=0.0)
        known = live & (y >= 0) & (y < C)
        takes = known & is_finite(n) & is_finite(m) & is_finite(x) & is_finite(v)
        one = takes.to(tl.int32)
        wrong = (takes & (k != y)).to(tl.int32)
        flip = (takes & (last >= 0) & (last != k)).to(tl.int32)
        measured = takes & (visits < FULL)
        visits += measured.to(tl.int32)
        moved = mean + (x - mean) / tl.maximum(visits, 1).to(tl.float32)
        deviations = tl.where(measured, deviations + (x - mean) * (x - moved), deviations)
        mean = tl.where(measured, moved, mean)
        margins = tl.where(measured, margins + m, margins)
        events += wrong
        if SECOND:
            events += (takes & (tl.load(second + current, mask=live, other=0) != y)).to(tl.int32)
        events = tl.minimum(events, FULL)
        flips = tl.minimum(flips + flip, FULL)
        forgotten = tl.minimum(forgotten + tl.where(last == y, wrong, 0), FULL)
        learned = tl.where(takes & (wrong == 0) & (learned == 0), learns, learned)
        last_wrong = tl.where(wrong == 1, visits, last_wrong)
        last = tl.where(takes, k.to(tl.int32), last)
        ema = tl.where(takes, tl.where(seen, momentum * old_ema + (1.0 - momentum) * v, v), ema)
        if HISTORY:
            value = tl.where(takes, tl.load(kept + current, mask=live, other=0.0), value)
        entered, changed, correct = entered + one, changed + flip, correct + one - wrong
        skipped += known.to(tl.int32) - one
        nats = tl.minimum(tl.where(takes, n, 0.0), LOSS_LIMIT)
        loss += (nats * PER_NAT).to(tl.int64)
        if tl.max((live & (current < rows)).to(tl.int32), 0) > 0:
            following, _last = occurrences(sample, current, index, batch, SCAN)
            live = live & (current < rows)
            current = tl.where(live, following, current)
        else:
            live = live & (rows < 0)
    takes = leads & (entered > 0)
    tl.store(record, visits | (events << 16), mask=takes)
    tl.store(record + 1, flips | (forgotten << 16), mask=takes)
    tl.store(record + 2, last + 1, mask=takes)
    tl.store(record + 3, learned | (last_wrong << 16), mask=takes)
    tl.store(record + 4, mean.to(tl.int32, bitcast=True), mask=takes)
    tl.store(record + 5, deviations.to(tl.int32, bitcast=True), mask=takes)
    tl.store(record + 6, ema.to(tl.int32, bitcast=True), mask=takes)
    tl.store(record + 7, margins.to(tl.int32, bitcast=True), mask=takes)
    if HISTORY:
        if LOG_ODDS:
            value = tl.minimum(tl.maximum(value, 1e-3), 1 - 1e-3)  # no log(0), and wider than the limit
            value = tl.log(value / (1.0 - value))
            value = tl.minimum(tl.maximum(value, -LOG_ODDS_LIMIT), LOG_ODDS_LIMIT)
        value = tl.minimum(value, HISTORY_LIMIT)
        cell = tl.load(counters + CURSOR) * num_samples + sample
        tl.store(history + cell, value, mask=takes)
    tl.atomic_add(counters + TALLY, tl.sum(entered, 0).to(tl.int64))
    tl.atomic_add(counters + TALLY + 1, tl.sum(changed, 0).to(tl.int64))
    tl.atomic_add(counters + TALLY + 2, tl.sum(correct, 0).to(tl.int64))
    tl.atomic_add(counters + TALLY + 3, tl.sum(loss, 0))
    tl.atomic_add(counters + TALLY + 4, tl.sum(skipped, 0).to(tl.int64))


def dynamics(
    records: Tensor, counters: Tensor, index: Tensor, label: Tensor, prediction: Tensor, second: Tensor | None,
    numbers: Tensor, columns: Columns, momentum: float, history: Tensor | None, num_classes: int,
) -> None:  # fmt: skip
    batch = len(index)
    if batch > 0:
        dynamics_kernel[(triton.cdiv(batch, ROWS),)](
            records, counters, index, label, prediction, second, numbers, history, batch, len(records), momentum,
            C=num_classes, MEAN_ROW=columns.mean, EMA_ROW=columns.ema, KEPT_ROW=columns.history,
            SECOND=second is not None, HISTORY=history is not None, LOG_ODDS=columns.log_odds, ROWS=ROWS,
            SCAN=SCAN)  # fmt: skip
