"""dynamics against a plain transcription, presentation by presentation, and its laws."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_dynamics import State, changed, compare, run_epochs, statistics

from fastlnl.backend import use_backend
from fastlnl.errors import ShapeError
from fastlnl.ops.dynamics import TRACKED, layout
from fastlnl.ops.row_loss import RowStats

pytestmark = pytest.mark.usefixtures("poison")


def test_three_epochs_with_repeated_ids_and_a_partial_batch(device):
    """70 rows are three programs of the GPU kernel: ids repeat inside of one and across them."""
    compare(*run_epochs(device, 3, [70, 33, 1], 47))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_samples=st.integers(1, 40),
    num_classes=st.integers(1, 4),
    batches=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    second=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_batches(device, num_samples, num_classes, batches, second, seed):
    compare(*run_epochs(device, 2, batches, num_samples, num_classes, second=second, seed=seed))


@pytest.mark.parametrize("track", list(zip(TRACKED, reversed(TRACKED), strict=True)), ids=lambda t: "-".join(t))
def test_every_statistic_can_be_tracked(track, device):
    compare(*run_epochs(device, 2, [9, 5], 7, track=track))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("kept", ["nll", "p_label", "log_odds"])
def test_ring(kept, dtype, device):
    """Four epochs into three rows: the fourth overwrites the first; who does not come stays NaN."""
    state, plain = run_epochs(device, 4, [6, 6], 17, rows=3, kept=kept, dtype=dtype)
    compare(state, plain)
    assert state.history[2].isnan().any()


def script(predictions, device, second=None):
    """Records after these presentations of one sample with label 1, each a batch, and again as a single batch."""
    records = []
    for batches in ([[b] for b in range(len(predictions))], [list(range(len(predictions)))]):
        state = State(1, device)
        for rows in batches:
            stats = statistics(len(rows), 3, torch.Generator())
            stats = changed(stats, prediction=torch.tensor([predictions[b] for b in rows]))
            other = None if second is None else [second[b] for b in rows]
            state.enter([0] * len(rows), [1] * len(rows), stats, ("nll", "p_label"), 0.9, other, 3)
        records.append({name: column[0] for name, column in state.integers().items()})
    assert records[0] == records[1]
    return records[0], state.counters.tolist()


def test_scripted_sequence(device):
    record, counted = script([0, 1, 1, 2, 1, 0, 0], device)
    assert record == {
        "visits": 7, "wrong": 4, "flips": 4, "forgotten": 2, "last": 0, "learned": 1, "last_wrong": 7
    }  # fmt: skip
    assert counted[layout.ROWS : layout.LOSS] == [7, 4, 3]


def test_never_learned_and_never_wrong(device):
    assert script([0, 0, 2], device)[0] | {"flips": 0} == {
        "visits": 3, "wrong": 3, "flips": 0, "forgotten": 0, "last": 2, "learned": 0, "last_wrong": 3
    }  # fmt: skip
    assert script([1, 1], device)[0] == {
        "visits": 2, "wrong": 0, "flips": 0, "forgotten": 0, "last": 1, "learned": 1, "last_wrong": 0
    }  # fmt: skip


def test_a_second_view_adds_wrong_events_only(device):
    first, both = script([1, 0, 1], device), script([1, 0, 1], device, second=[0, 2, 1])
    assert both[0] == first[0] | {"wrong": first[0]["wrong"] + 2}
    assert both[1] == first[1]


def test_empty_batch(device):
    state = State(3, device)
    state.enter([], [], statistics(0, 5, torch.Generator()), ("nll", "p_label"), 0.9)
    assert not state.records.any()
    assert not state.counters.any()


@pytest.mark.parametrize("integer", [torch.int32, torch.uint8])
def test_any_integer_type_and_stride(integer, device):
    stats = statistics(6, 5, torch.Generator().manual_seed(0))
    index, label = torch.tensor([0, 1, 2, 3, 1, 0]), torch.tensor([0, 1, 2, 3, 1, 0])
    plain, other = State(4, device), State(4, device)
    plain.enter(index, label, stats, ("nll", "p_label"), 0.9)
    strided = RowStats.of(*(x.repeat_interleave(2)[::2] for x in stats))
    other.enter(index.to(integer), label.to(integer).repeat_interleave(3)[::3], strided, ("nll", "p_label"), 0.9)
    assert torch.equal(plain.records, other.records)


def test_inputs_are_not_modified(device):
    stats = statistics(6, 5, torch.Generator())
    index, label = torch.arange(6, device=device), torch.zeros(6, dtype=torch.int64, device=device)
    before = [x.clone() for x in (*stats, index, label)]
    State(6, device).enter(index, label, stats, ("nll", "p_label"), 0.9)
    assert all(torch.equal(x, y) for x, y in zip((*stats, index, label), before, strict=True))


def test_backends_agree_to_the_bit_in_all_counts():
    states = []
    for name in ("reference", "numba", "triton"):
        pytest.importorskip({"reference": "torch"}.get(name, name))
        with use_backend(name):
            states.append(run_epochs("cpu", 2, [40, 40], 23, second=True, rows=2)[0])
    for other in states[1:]:
        assert torch.equal(other.records[:, : layout.MEAN], states[0].records[:, : layout.MEAN])
        assert torch.equal(other.counters, states[0].counters)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"index": torch.zeros(2, dtype=torch.int64)}, r"index is \(2,\) int64; expected \(3,\)"),
        ({"label": torch.zeros(3)}, r"label is \(3,\) float32; expected \(3,\) of an integer type"),
        ({"second": torch.zeros(1, dtype=torch.int64)}, r"second_prediction is \(1,\) int64; expected \(3,\)"),
        ({"records": torch.zeros(4, 7, dtype=torch.int32)}, r"records is \(4, 7\) int32; expected contiguous \(N, 8\)"),
        ({"counters": torch.zeros(4, dtype=torch.int64)}, r"counters is \(4,\) int64; expected \(12,\) int64"),
        ({"history": torch.zeros(2, 5)}, r"history is \(2, 5\) float32; expected contiguous \(R, 4\)"),
        ({"numbers": torch.zeros(4, 3)}, r"numbers is \(4, 3\) float32; expected \(5, 3\) of a floating type"),
    ],
)
def test_refused_at_the_door(change, text):
    state, stats = State(4, "cpu"), statistics(3, 5, torch.Generator())
    given = {"index": torch.arange(3), "label": torch.zeros(3, dtype=torch.int64), "second": None} | change
    state.records = change.get("records", state.records)
    state.counters = change.get("counters", state.counters)
    state.history = change.get("history")
    stats = RowStats(change.get("numbers", stats.numbers), stats.prediction)
    with pytest.raises(ShapeError, match=text):
        state.enter(given["index"], given["label"], stats, ("nll", "p_label"), 0.9, given["second"])
