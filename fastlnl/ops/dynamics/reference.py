"""dynamics in plain torch: occurrences of an id are sorted side by side, so that nothing waits for the device."""

import torch
from torch import Tensor

from fastlnl.ops.dynamics import Columns
from fastlnl.ops.dynamics.layout import (
    CURSOR,
    DEVIATIONS,
    EMA,
    EPOCH,
    ERRORS,
    FLIPS,
    FULL,
    HISTORY_LIMIT,
    LAST_PREDICTION,
    LEARNED,
    LOG_ODDS_LIMIT,
    LOSS_LIMIT,
    LOSS_UNIT,
    MARGINS,
    MEAN,
    ROWS,
    high_half,
    low_half,
)
from fastlnl.ops.row_loss.reference import check_rows


@torch.no_grad()
def dynamics(
    records: Tensor, counters: Tensor, index: Tensor, label: Tensor, prediction: Tensor, second: Tensor | None,
    numbers: Tensor, columns: Columns, momentum: float, history: Tensor | None, num_classes: int,
) -> None:  # fmt: skip
    nll, margin = numbers[0], numbers[3]
    mean_of, ema_of, kept, log_odds = *(numbers[row] for row in columns[:3]), columns.log_odds
    batch, num_samples = len(index), len(records)
    if batch == 0:
        return
    known = check_rows(label[:, None].expand(-1, num_classes), label, index, num_samples, counters[ERRORS:])
    valid = known & torch.stack([nll, margin, mean_of, ema_of]).isfinite().all(0)
    wrong = prediction != label
    events = wrong.long() if second is None else wrong.long() + (second != label)

    # Sorted by id, in batch order within one; rows that do not count come last.
    key, order = torch.where(valid, index, num_samples).sort(stable=True)
    place = torch.arange(batch, device=index.device)
    counts = key < num_samples
    first = (key != key.roll(1)) | (place == 0)
    group = first.cumsum(0) - 1
    begin = torch.where(first, place, 0).cummax(0).values
    rank = place - begin
    sample = torch.where(counts, key, 0)
    old = records[sample]
    prediction, label, wrong = prediction[order], label[order], wrong[order]

    def total(x: Tensor) -> Tensor:
        """Sum over the occurrences of the same id, for each of them."""
        x = torch.where(counts, x, 0)
        return x.new_zeros(batch).index_add_(0, group, x)[group]

    def highest(x: Tensor) -> Tensor:
        return x.new_zeros(batch).scatter_reduce_(0, group, torch.where(counts, x, 0), "amax")[group]

    visits = low_half(old, 0).long()
    visit = visits + rank + 1
    before = torch.where(rank == 0, old[:, LAST_PREDICTION].long() - 1, prediction.roll(1))
    flips = (before >= 0) & (prediction != before)
    forgotten = (before == label) & wrong
    last = begin + total(counts.long()).clamp(min=1) - 1  # place of the last occurrence
    learned = low_half(old, LEARNED).long()
    learns = (counters[EPOCH] + 1).clamp(max=FULL)
    learned = torch.where((learned == 0) & (total((~wrong).long()) > 0), learns, learned)
    halves = [
        (visits + total(counts.long()), high_half(old, 0) + total(events[order])),
        (low_half(old, FLIPS) + total(flips.long()), high_half(old, FLIPS) + total(forgotten.long())),
        (learned, torch.maximum(high_half(old, LEARNED).long(), highest(torch.where(wrong, visit, 0)))),
    ]
    words = [(low.clamp(max=FULL) | high.clamp(max=FULL) << 16).to(torch.int32) for low, high in halves]

    # The visits of this batch as a group of their own, merged with those before (Chan et al. 1979).
    measured = (visit <= FULL).double()
    x, numbers = mean_of[order].double(), old.view(torch.float32)
    mean, n, added = numbers[:, MEAN].double(), visits, total(measured)
    here = total(measured * x) / added.clamp(min=1)
    share = added / (n + added).clamp(min=1)
    deviations = numbers[:, DEVIATIONS] + total(measured * (x - here) ** 2) + (here - mean) ** 2 * n * share
    ema, latest = numbers[:, EMA], ema_of[order][last]
    ema = torch.where(visits == 0, latest, momentum * ema + (1 - momentum) * latest)
    margins = numbers[:, MARGINS] + total(measured * margin[order].double())
    floats = (mean + (here - mean) * share, deviations, ema, margins)
    new = torch.stack(
        [words[0], words[1], (prediction[last] + 1).to(torch.int32), words[2]]
        + [v.float().view(torch.int32) for v in floats],
        1,
    )

    # Rows that do not count write what the first place writes, or what is there if no row counts.
    new, writer = torch.where(counts[:, None], new, old), torch.where(counts, place, 0)
    records[sample[writer]] = new[writer]
    if history is not None:
        h = kept[order][last].clamp(max=HISTORY_LIMIT)
        if log_odds:
            h = h.clamp(1e-3, 1 - 1e-3)  # no log(0), and wider than the limit
            h = (h / (1 - h)).log().clamp(-LOG_ODDS_LIMIT, LOG_ODDS_LIMIT)
        cell = counters[CURSOR] * num_samples + sample
        ring = history.view(-1)
        ring[cell[writer]] = torch.where(counts, h.to(history.dtype), ring[cell])[writer]
    losses = (nll[order].clamp(max=LOSS_LIMIT) / LOSS_UNIT).nan_to_num().long()
    sums = (counts, counts & flips, counts & ~wrong, torch.where(counts, losses, 0), known & ~valid)
    counters[ROWS:ERRORS] += torch.stack([s.sum() for s in sums])
