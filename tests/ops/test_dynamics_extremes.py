"""dynamics at the ends of its numbers: full counts, rows that are no numbers, ids and labels out of range."""

import numpy as np
import pytest
import torch
from plain_dynamics import Plain, State, changed, compare, statistics

from fastlnl.ops.dynamics import layout
from fastlnl.ops.row_loss import RowStats

pytestmark = pytest.mark.usefixtures("poison")


def test_log_odds_never_take_the_logarithm_of_zero(device):
    state = State(3, device, rows=1)
    p = torch.tensor([0.0, 1.0, 0.5])
    stats = changed(statistics(3, 5, torch.Generator()), p_label=p, nll=-p.clamp(min=1e-38).log())
    state.enter([0, 1, 2], [0, 0, 0], stats, ("nll", "p_label"), 0.9)
    assert state.history.tolist() == [[-6.0, 6.0, 0.0]]


def test_a_loss_beyond_float16_stays_finite_in_the_ring(device):
    state = State(1, device, rows=1, dtype=torch.float16)
    stats = changed(statistics(1, 5, torch.Generator()), nll=torch.tensor([1e5]))
    state.enter([0], [0], stats, ("p_label", "p_label"), 0.9, kept="nll")
    assert state.history.tolist() == [[65504.0]]


def test_counts_stop_at_their_end(device):
    """And the averages with them: they stay those of the first 65,535 presentations."""
    state = State(2, device)
    full = 0xFFFF | 0xFFFE << 16
    state.records[:, :2] = full - 2**32
    state.records[:, layout.LAST_PREDICTION] = 2  # class 1
    state.records[:, layout.LEARNED] = 1
    state.counters[layout.EPOCH] = 70_000
    before = state.numbers()
    stats = changed(statistics(3, 3, torch.Generator()), prediction=torch.tensor([0, 1, 0]))
    state.enter([0, 0, 0], [1, 1, 1], stats, ("nll", "p_label"), 0.9, [0, 0, 0], 3)
    columns = {name: column[0] for name, column in state.integers().items()}
    assert columns == {
        "visits": 65535, "wrong": 65535, "flips": 65535, "forgotten": 65535, "last": 0, "learned": 1,
        "last_wrong": 65535
    }  # fmt: skip
    after = state.numbers()
    assert all((before[name] == after[name]).all() for name in ("mean", "deviations", "margins"))
    assert after["ema"][0] > 0
    assert state.integers()["visits"][1] == 65535  # the neighbour is untouched
    assert state.counters[layout.CHANGED] == 3


def test_the_epoch_first_learned_stops_at_its_end(device):
    state = State(1, device)
    state.counters[layout.EPOCH] = 70_000
    stats = changed(statistics(1, 3, torch.Generator()), prediction=torch.tensor([1]))
    state.enter([0], [1], stats, ("nll", "p_label"), 0.9, None, 3)
    assert state.integers()["learned"] == [65535]


def test_variance_of_values_far_from_zero(device):
    """Welford keeps three digits where the sum of squares in float32 has none: mean 1e3, deviation 1e-2."""
    state, num_samples, visits = State(5, device), 5, 60
    values = 1e3 + 1e-2 * torch.randn(visits, num_samples, dtype=torch.float64)
    values = values.float()
    for row in values:
        stats = statistics(num_samples, 3, torch.Generator())
        stats.nll.copy_(row)
        state.enter(range(num_samples), [0] * num_samples, stats, ("nll", "p_label"), 0.9, None, 3)
    exact = values.double()
    numbers = state.numbers()
    np.testing.assert_allclose(numbers["mean"], exact.mean(0), rtol=3e-7)
    np.testing.assert_allclose(numbers["deviations"] / visits, exact.var(0, correction=0), rtol=2e-2)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("column", ["nll", "p_label", "margin"])
def test_rows_that_are_no_numbers_are_left_out(column, bad, device):
    random = torch.Generator().manual_seed(3)
    stats = statistics(6, 5, random)
    getattr(stats, column)[2] = bad
    index, label = [4, 1, 0, 0, 2, 0], [1, 2, 3, 3, 0, 3]
    left = [0, 1, 3, 4, 5]
    for kept in ("log_odds", "nll"):
        state, plain, without = State(6, device, rows=1), Plain(6, 1), State(6, device, rows=1)
        state.enter(index, label, stats, ("nll", "p_label"), 0.9, kept=kept)
        plain.enter(index, label, stats, ("nll", "p_label"), 0.9, kept=kept)
        compare(state, plain)
        rest = RowStats.of(*(x[left] for x in stats))
        without.enter([index[b] for b in left], [label[b] for b in left], rest, ("nll", "p_label"), 0.9, kept=kept)
        assert torch.equal(state.records, without.records)
        assert state.counters[layout.SKIPPED] == 1


def test_a_batch_without_a_single_good_row_changes_nothing(device):
    state = State(4, device, rows=1)
    state.records[:] = 7
    stats = statistics(3, 5, torch.Generator())
    stats.nll[:] = torch.nan
    state.enter([0, 1, 0], [0, 0, 0], stats, ("nll", "p_label"), 0.9)
    assert (state.records == 7).all()
    assert state.history.isnan().all()
    assert state.counters.tolist() == [0] * layout.SKIPPED + [3] + [0] * 4


@pytest.mark.parametrize(
    ("index", "label", "word"),
    [
        ([1, 2, -2, 0], [0, 1, 2, 3], [2, 2, -2, -2]),
        ([1, 2, 9, 0], [0, 1, 2, 3], [2, 2, 9, 9]),
        ([1, 2, 2**40, 9], [0, 1, 2, 3], [2, 2, 2**40, 2**40]),
        ([1, 1, 3, 0], [0, 5, -1, 3], [1, 1, 1, 5]),
    ],
)
def test_ids_and_labels_out_of_range(index, label, word, device):
    """The first is recorded and stays; nothing outside of the tables is written, and nothing of that row."""
    whole = torch.zeros(29, layout.WORDS, dtype=torch.int32, device=device)
    whole[:10] = whole[-10:] = 77
    ring = torch.full((3, 9), 77.0, device=device)
    state, clean = State(9, device), State(9, device, rows=1)
    state.records, state.history = whole[10:-10], ring[1:2]
    random = torch.Generator().manual_seed(0)
    stats = statistics(4, 5, random)
    state.enter(index, label, stats, ("nll", "p_label"), 0.9)
    assert state.counters[layout.ERRORS :].tolist() == word
    good = [b for b in range(4) if 0 <= index[b] < 9 and 0 <= label[b] < 5]
    rest = RowStats.of(*(x[good] for x in stats))
    clean.enter([index[b] for b in good], [label[b] for b in good], rest, ("nll", "p_label"), 0.9)
    assert torch.equal(state.records, clean.records)
    assert state.counters[layout.ROWS] == len(good)
    assert state.counters[layout.SKIPPED] == 0
    assert (whole[:10] == 77).all()
    assert (whole[-10:] == 77).all()
    assert (ring[[0, 2]] == 77).all()
    state.enter([100], [0], RowStats.of(*(x[:1] for x in stats)), ("nll", "p_label"), 0.9)
    assert state.counters[layout.ERRORS :].tolist() == word


def test_padding_changes_nothing(device):
    """Rows of id -1, whatever their labels are."""
    stats = statistics(6, 5, torch.Generator())
    padded, alone, kept = State(4, device, rows=1), State(4, device, rows=1), [1, 3, 4]
    padded.enter([-1, 2, -1, 0, 2, -1], [9, 1, -7, 2, 1, 0], stats, ("nll", "p_label"), 0.9)
    alone.enter([2, 0, 2], [1, 2, 1], RowStats.of(*(x[kept] for x in stats)), ("nll", "p_label"), 0.9)
    assert torch.equal(padded.records, alone.records)
    assert torch.equal(padded.counters, alone.counters)
    assert torch.equal(padded.history.isnan(), alone.history.isnan())
