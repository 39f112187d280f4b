"""What the training history says about each sample: one record a sample, moved by the statistics of the row pass."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastlnl import backend
from fastlnl.errors import ShapeError
from fastlnl.ops.doors import describe, floats, integers
from fastlnl.ops.dynamics.layout import COUNTERS, WORDS
from fastlnl.ops.row_loss import RowStats
from fastlnl.ops.row_loss.contract import NUMBERS

__all__ = ["HISTORY_STATISTICS", "TRACKED", "Columns", "columns_of", "dynamics", "enter"]

TRACKED = NUMBERS
HISTORY_STATISTICS = ("nll", "p_label", "log_odds")


def dynamics(
    records: Tensor,
    counters: Tensor,
    index: Tensor,
    label: Tensor,
    stats: RowStats,
    *,
    num_classes: int,
    track: tuple[str, str],
    momentum: float,
    second_prediction: Tensor | None = None,
    history: Tensor | None = None,
    history_statistic: str = "log_odds",
) -> None:
    """Enter one batch into the records of its samples, the ring of the epoch and the counters of the epoch.

    With y the label, k the prediction and x, v the two tracked statistics of a row, the record of its sample takes

        visits += 1;  wrong events += [k != y] (+ [second k != y]);  margin sum += margin
        flips += [k != last k];  forgetting events += [last k = y, k != y];  last k = k    (from the second visit on)
        mean += (x - mean) / visits;  deviations += (x - old mean) (x - mean)              (Welford 1962)
        ema = momentum ema + (1 - momentum) v                                              (v at the first visit)

    Repeated ids: sums and counters take every occurrence, as if they came one after the other in batch order. The
    moving average and the ring take the one with the highest position, the average from its value before the batch.
    A row with a statistic that is not finite is left out: it is counted as skipped, nothing else.

    Args:
        records: (N, 8) int32, one record a sample, see `layout`; a memory sector each if it starts at 32 bytes.
        counters: (12,) int64, see `layout`; the epoch and the cursor of the ring are read from there, the last four
            words are an error word. The first label outside [0, C) or id outside [0, N) is recorded there and stays
            (of several in one batch on a GPU, the one whose program comes first); such a row touches nothing else.
        index: (B,) any integer type, sample ids; -1 is padding, which changes nothing.
        label: (B,) any integer type, given labels; those of an id are the same whenever it comes.
        stats: of `row_loss` or `row_stats`, each (B,).
        num_classes: C.
        track: the statistic of mean and deviations, and that of the moving average; of `TRACKED`.
        momentum: weight of the old moving average.
        second_prediction: (B,) predicted classes of a second view; they add wrong events only.
        history: (R, N) float16 or float32; row `cursor` takes `history_statistic` of the samples in the batch.
        history_statistic: of `HISTORY_STATISTICS`; log_odds is log(p_y / (1 - p_y)), limited to [-6, 6], and
            nll ends at the largest float16.

    Raises:
        ShapeError: shapes, types or devices do not fit.

    Deterministic. Source: Zhang et al. 2025 (wrong events), Toneva et al. 2019 (forgetting), Pleiss et al. 2020
    (margins). Updates: records, counters, history.
    """
    if records.dtype != torch.int32 or records.dim() != 2 or records.shape[1] != WORDS or not records.is_contiguous():
        raise ShapeError(f"records is {describe(records)}; expected contiguous (N, {WORDS}) int32")
    if counters.dtype != torch.int64 or counters.shape != (COUNTERS,):
        raise ShapeError(f"counters is {describe(counters)}; expected ({COUNTERS},) int64")
    if history is not None and (
        history.dtype not in (torch.float16, torch.float32)
        or history.shape[1:] != records.shape[:1]
        or not history.is_contiguous()
    ):
        raise ShapeError(
            f"history is {describe(history)}; expected contiguous (R, {records.shape[0]}) float16 or float32"
        )
    columns = columns_of(track, history_statistic)
    enter(records, counters, index, label, stats, num_classes, columns, momentum, second_prediction, history)


class Columns(NamedTuple):
    """Which rows of `RowStats.numbers` go where."""

    mean: int
    ema: int
    history: int
    log_odds: bool  # of the last


def columns_of(track: tuple[str, str], history_statistic: str) -> Columns:
    log_odds = history_statistic == "log_odds"
    mean, ema = (NUMBERS.index(name) for name in track)
    return Columns(mean, ema, NUMBERS.index("p_label" if log_odds else history_statistic), log_odds)


def enter(
    records: Tensor, counters: Tensor, index: Tensor, label: Tensor, stats: RowStats, num_classes: int,
    columns: Columns, momentum: float, second_prediction: Tensor | None, history: Tensor | None,
) -> None:  # fmt: skip
    """`dynamics` on records, counters and history that were checked before: those of a module, say."""
    numbers, batch = stats.numbers, stats.prediction.shape[0]
    if records.device != numbers.device:
        raise ShapeError(
            f"the dynamics are on {records.device} but the statistics on {numbers.device}; move one of them"
        )
    if second_prediction is not None:
        second_prediction = integers("second_prediction", second_prediction, batch, numbers)
    backend.implementation("dynamics", records)(
        records,
        counters,
        integers("index", index, batch, numbers),
        integers("label", label, batch, numbers),
        integers("prediction", stats.prediction, batch, numbers),
        second_prediction,
        floats("numbers", numbers, (len(NUMBERS), batch), numbers),
        columns,
        momentum,
        history,
        num_classes,
    )
