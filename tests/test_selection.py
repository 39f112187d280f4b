"""The selection rules against their definitions written out in plain Python."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from fastlnl import selection
from fastlnl.backend import use_backend
from fastlnl.errors import ShapeError

LABEL = torch.tensor([0, 1, 0, 2, 1, 0, 0, 2, 1, 0])
SCORES = torch.tensor([0.9, 0.1, 0.8, 0.3, 0.7, 0.8, 0.2, 0.3, 0.6, 0.8])


def ids(mask):
    return mask.nonzero().flatten().tolist()


def best(scores, count, candidates=None):
    """Ids of the highest scores, ties by id, in ascending order."""
    candidates = range(len(scores)) if candidates is None else candidates
    order = sorted((i for i in candidates if not math.isnan(scores[i])), key=lambda i: (-float(scores[i]), i))
    return sorted(order[: max(0, count)])


def test_compact(device):
    mask = torch.tensor([False, True, True, False, True], device=device)
    index, count = selection.compact(mask)
    assert index.tolist() == [1, 2, 4, -1, -1]
    assert index.dtype == count.dtype == torch.int64
    assert count.shape == ()
    assert count == 3
    index, count = selection.compact(mask, 2)
    assert index.tolist() == [1, 2]
    assert count == 3
    assert selection.compact(mask, 7)[0].tolist() == [1, 2, 4, -1, -1, -1, -1]
    assert selection.compact(mask[:0])[0].tolist() == []
    with pytest.raises(ShapeError, match=r"mask is \(5,\) int64; expected \(N,\) bool"):
        selection.compact(mask.long())


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_compact_lists_the_ids(mask, capacity):
    index, count = selection.compact(torch.tensor(mask, dtype=torch.bool), capacity)
    chosen = [i for i, there in enumerate(mask) if there]
    assert count == len(chosen)
    assert index.tolist() == (chosen + [-1] * capacity)[:capacity]


def test_above_threshold_is_strict(device):
    scores = SCORES.to(device)
    assert ids(selection.above_threshold(scores, 0.5)) == [0, 2, 4, 5, 8, 9]
    assert 3 not in ids(selection.above_threshold(scores, scores[3]))
    per_class = torch.tensor([0.85, 0.5, 0.0], device=device)
    assert ids(selection.above_threshold(scores, per_class[LABEL.to(device)])) == [0, 3, 4, 7, 8]
    assert ids(selection.above_threshold(torch.tensor([torch.nan, 1.0], device=device), -torch.inf)) == [1]


@pytest.mark.parametrize("k", [0, 1, 2, 3, 9, 10, 11])
def test_highest_breaks_ties_by_id(k, device):
    scores = SCORES.to(device)
    assert ids(selection.highest(scores, k)) == best(SCORES, k)
    assert ids(selection.highest(scores, torch.tensor(k, device=device))) == best(SCORES, k)
    among = LABEL.to(device) != 0
    assert ids(selection.highest(scores, k, among=among)) == best(SCORES, k, [1, 3, 4, 7, 8])


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3, 0.7, 0.8, 1.0])
def test_small_loss_keeps_what_co_teaching_keeps(rate, device):
    for n in (1, 7, 10, 128):
        loss = torch.rand(n)
        expected = best(-loss, max(1, int(rate * n)))
        assert ids(selection.small_loss(loss.to(device), rate)) == expected
        on_device = torch.tensor(rate, dtype=torch.float64, device=device)
        assert ids(selection.small_loss(loss.to(device), on_device)) == expected
    among = LABEL.to(device) == 0
    kept = max(1, int(rate * 5))
    assert ids(selection.small_loss(SCORES.to(device), rate, among=among)) == best(-SCORES, kept, [0, 2, 5, 6, 9])
    assert ids(selection.small_loss(SCORES.to(device), rate, among=among & ~among)) == []


@pytest.mark.parametrize("q", [0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
def test_above_quantile(q, device):
    scores = torch.cat([torch.randn(101), torch.full((3,), torch.nan)])
    chosen = selection.above_quantile(scores.to(device), q).cpu()
    assert ids(chosen) == best(scores, 101 - math.ceil(101 * q))
    if q > 0:
        assert torch.equal(chosen[:101], scores[:101] > np.quantile(scores[:101].numpy(), q, method="inverted_cdf"))
    tied = selection.above_quantile(torch.ones(8, device=device), torch.tensor(q, device=device))
    assert ids(tied) == list(range(8 - math.ceil(8 * q)))


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 1.0])
def test_class_balanced(rate, device):
    share = math.ceil(rate * len(LABEL) / 3)
    expected = sorted(i for c in range(3) for i in best(SCORES, share, ids(c == LABEL)))
    inputs = SCORES.to(device), LABEL.to(device), 3
    assert ids(selection.class_balanced(*inputs, rate)) == expected
    assert ids(selection.class_balanced(*inputs, torch.tensor(rate, device=device))) == expected


def test_class_balanced_with_empty_and_foreign_classes(device):
    label = torch.tensor([0, 0, 3, 3, -1, 9], device=device)
    chosen = selection.class_balanced(torch.arange(6.0, device=device), label, 4, 1.0)
    assert ids(chosen) == [0, 1, 2, 3]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(-1, 3), st.integers(0, 3)), max_size=20),
    minimum=st.integers(0, 4),
)
def test_at_least_per_class(rows, minimum, device):
    mask = torch.tensor([row[0] for row in rows], dtype=torch.bool)
    label = torch.tensor([row[1] for row in rows], dtype=torch.int64)
    scores = torch.tensor([row[2] for row in rows], dtype=torch.float32)
    expected = set(ids(mask))
    for c in range(3):
        mine = ids(label == c)
        have = sum(bool(mask[i]) for i in mine)
        expected |= set(best(scores, minimum - have, [i for i in mine if not mask[i]]))
    chosen = selection.at_least_per_class(mask.to(device), scores.to(device), label.to(device), 3, minimum)
    assert ids(chosen) == sorted(expected)


def test_at_least_of_all_samples(device):
    mask, everyone = SCORES.to(device) > 2, torch.zeros(10, dtype=torch.int64, device=device)
    assert ids(selection.at_least_per_class(mask, SCORES.to(device), everyone, 1, 4)) == [0, 2, 5, 9]


def test_agreement(device):
    probs = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.5, 0.5], [0.1, 0.9]], device=device)
    other = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]], device=device)
    assert ids(selection.agreement(probs, other)) == [0, 2, 3]
    assert ids(selection.agreement(probs, other, 0.6)) == [3]
    assert ids(selection.agreement(other, probs, torch.tensor(0.75, device=device))) == [0, 3]


def test_class_counts(device):
    label = torch.tensor([0, 2, 2, 5, -1, 3], dtype=torch.int32, device=device)
    assert selection.class_counts(label, 4).tolist() == [1, 0, 2, 1]
    assert selection.class_counts(label, 4, label != 3).tolist() == [1, 0, 2, 0]


def test_nothing_waits_for_the_device():
    """A fake tensor has no values: reading one, or a shape that depends on one, is an error."""
    with use_backend("reference"), FakeTensorMode():
        scores, label, rate = torch.empty(40), torch.zeros(40, dtype=torch.int64), torch.empty(())
        mask = selection.above_threshold(scores, rate)
        for number in (rate, 0.5):
            for chosen in (
                selection.small_loss(scores, number, among=mask),
                selection.above_quantile(scores, number),
                selection.class_balanced(scores, label, 4, number),
                selection.at_least_per_class(mask, scores, label, 4, 3),
                selection.highest(scores, 7),
                selection.agreement(torch.empty(40, 4), torch.empty(40, 4), number),
            ):
                assert chosen.shape == (40,)
                assert selection.compact(chosen, 16)[0].shape == (16,)


@pytest.mark.gpu
@pytest.mark.parametrize("n", [500, 20_000])
def test_rules_replay_in_a_cuda_graph(n):
    loss, label = torch.rand(n, device="cuda"), torch.randint(0, 5, (n,), device="cuda")
    rate = torch.full((), 0.3, device="cuda")

    def rules():
        mask = selection.small_loss(loss, rate) | selection.class_balanced(-loss, label, 5, 0.1)
        return selection.at_least_per_class(mask, -loss, label, 5, 7), *selection.compact(mask, n // 2)

    rules()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = rules()
    loss.copy_(torch.rand(n))
    rate.fill_(0.4)
    graph.replay()
    torch.cuda.set_sync_debug_mode("error")
    try:
        eager = rules()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(x, y) for x, y in zip(replayed, eager, strict=True))
