"""dynamics as a person would write it down, and the tools to hold the primitive against that."""

from dataclasses import dataclass

import numpy as np
import torch

from fastlnl.ops.dynamics import dynamics, layout
from fastlnl.ops.row_loss import RowStats
from fastlnl.ops.row_loss.contract import NUMBERS

INTEGERS = ("visits", "wrong", "flips", "forgotten", "last", "learned", "last_wrong")


@dataclass
class Sample:
    """What the issue asks for, as a person would write it down: float64, one presentation at a time."""

    visits: int = 0
    wrong: int = 0
    flips: int = 0
    forgotten: int = 0
    last: int = -1
    learned: int = 0
    last_wrong: int = 0
    mean: float = 0.0
    deviations: float = 0.0
    ema: float = 0.0
    margins: float = 0.0


class Plain:
    """Records, counters and ring in Python's own types."""

    def __init__(self, num_samples, rows=0):
        self.samples = [Sample() for _ in range(num_samples)]
        self.tally = dict.fromkeys(("rows", "changed", "correct", "skipped"), 0)
        self.loss, self.epoch, self.cursor = 0.0, 0, 0
        self.ring = np.full((rows, num_samples), np.nan)

    def enter(self, index, label, stats, track, momentum, second=None, kept="log_odds"):
        batch = {name: np.asarray(getattr(stats, name), np.float64) for name in (*NUMBERS, "prediction")}
        ema_before = {}
        for b, i in enumerate(index):
            row = {name: v[b] for name, v in batch.items()}
            if not np.isfinite([row["nll"], row["margin"], row[track[0]], row[track[1]]]).all():
                self.tally["skipped"] += 1
                continue
            s, y, k = self.samples[i], label[b], int(row["prediction"])
            old_ema, fresh = ema_before.setdefault(i, (s.ema, s.visits == 0))
            self.tally["rows"] += 1
            self.tally["correct"] += k == y
            self.loss += row["nll"]
            if s.visits > 0 and k != s.last:
                s.flips += 1
                self.tally["changed"] += 1
                s.forgotten += s.last == y
            s.visits += 1
            s.wrong += (k != y) + (second is not None and second[b] != y)
            s.last = k
            if k == y and s.learned == 0:
                s.learned = self.epoch + 1
            if k != y:
                s.last_wrong = s.visits
            x, v = row[track[0]], row[track[1]]
            before = s.mean
            s.mean += (x - before) / s.visits
            s.deviations += (x - before) * (x - s.mean)
            s.ema = v if fresh else momentum * old_ema + (1 - momentum) * v
            s.margins += row["margin"]
            if len(self.ring):
                p = min(max(row["p_label"], 1e-9), 1 - 1e-9)
                odds = np.clip(np.log(p / (1 - p)), -6, 6)
                self.ring[self.cursor, i] = odds if kept == "log_odds" else row[kept]


def on(device, values):
    """Integers as a tensor on the device; a tensor keeps its type and strides."""
    return values.to(device) if isinstance(values, torch.Tensor) else torch.tensor(list(values), device=device).long()


class State:
    """The same in tensors."""

    def __init__(self, num_samples, device, rows=0, dtype=torch.float32):
        self.records = torch.zeros(num_samples, layout.WORDS, dtype=torch.int32, device=device)
        self.counters = torch.zeros(layout.COUNTERS, dtype=torch.int64, device=device)
        self.history = torch.full((rows, num_samples), torch.nan, dtype=dtype, device=device) if rows else None

    def enter(self, index, label, stats, track, momentum, second=None, num_classes=5, kept="log_odds"):
        device = self.records.device
        dynamics(
            self.records,
            self.counters,
            on(device, index),
            on(device, label),
            RowStats(stats.numbers.to(device), stats.prediction.to(device)),
            num_classes=num_classes,
            track=track,
            momentum=momentum,
            second_prediction=None if second is None else on(device, second),
            history=self.history,
            history_statistic=kept,
        )

    def integers(self):
        low, high = (lambda word, f=f: f(self.records, word).tolist() for f in (layout.low_half, layout.high_half))
        columns = (low(0), high(0), low(1), high(1), (self.records[:, 2] - 1).tolist(), low(3), high(3))
        return dict(zip(INTEGERS, columns, strict=True))

    def numbers(self):
        names = ("mean", "deviations", "ema", "margins")
        return dict(zip(names, self.records.view(torch.float32)[:, 4:].T.cpu().double().numpy(), strict=True))


def statistics(batch, num_classes, random):
    """Random row statistics; they need not belong together."""
    draw = [torch.rand(batch, generator=random) * scale for scale in (5, 1, 1)]
    prediction = torch.randint(num_classes, (batch,), generator=random)
    return RowStats.of(*draw, prediction, torch.randn(batch, generator=random), torch.rand(batch, generator=random))


def compare(state, plain):
    for name, column in state.integers().items():
        assert column == [getattr(s, name) for s in plain.samples], name
    for name, column in state.numbers().items():
        exact = np.array([getattr(s, name) for s in plain.samples])
        np.testing.assert_allclose(column, exact, rtol=2e-5, atol=2e-6, err_msg=name)
    tally = plain.tally
    expected = [plain.epoch, plain.cursor, 0, *(tally[n] for n in ("rows", "changed", "correct")), tally["skipped"]]
    counted = state.counters.tolist()
    assert [*counted[: layout.LOSS], counted[layout.SKIPPED]] == expected
    assert abs(counted[layout.LOSS] * layout.LOSS_UNIT - plain.loss) <= 1e-6 * (tally["rows"] + 1)
    assert counted[layout.ERRORS :] == [0] * 4
    if state.history is not None:
        rough = 3e-3 if state.history.dtype == torch.float16 else 2e-5
        np.testing.assert_allclose(state.history.cpu().double().numpy(), plain.ring, rtol=0, atol=rough)


def run_epochs(device, epochs, batches, num_samples, num_classes=5, track=("nll", "p_label"), second=False, seed=0,
               **ring):  # fmt: skip
    """Random batches with repeated ids through both; the ring moves on after each epoch."""
    random = torch.Generator().manual_seed(seed)
    rows, kept = ring.get("rows", 0), ring.get("kept", "log_odds")
    state, plain = State(num_samples, device, rows, ring.get("dtype", torch.float32)), Plain(num_samples, rows)
    label = torch.randint(num_classes, (num_samples,), generator=random)
    for _ in range(epochs):
        for batch in batches:
            index = torch.randint(num_samples, (batch,), generator=random)
            stats = statistics(batch, num_classes, random)
            other = torch.randint(num_classes, (batch,), generator=random) if second else None
            state.enter(index, label[index], stats, track, 0.9, other, num_classes, kept)
            plain.enter(
                index.tolist(),
                label[index].tolist(),
                stats,
                track,
                0.9,
                None if other is None else other.tolist(),
                kept,
            )
        plain.epoch += 1
        plain.cursor = (plain.cursor + 1) % max(rows, 1)
        state.counters[layout.EPOCH], state.counters[layout.CURSOR] = plain.epoch, plain.cursor
    return state, plain


def changed(stats, **vectors):
    """The same statistics but for these."""
    names = ("nll", "p_label", "confidence", "prediction", "margin", "entropy")
    return RowStats.of(**{name: vectors.get(name, getattr(stats, name)) for name in names})
