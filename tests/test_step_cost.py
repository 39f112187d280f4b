"""The benchmark of a step's launches compares two ways to the same loss, and ours reads nothing."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastlnl.methods import SANM, DivideMix

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import bookkeeping
import counting
import epochs
import plain_bookkeeping
import step_cost
import steps


@pytest.mark.parametrize("build", [DivideMix, SANM])
def test_both_ways_give_the_same_loss(build, monkeypatch):
    """Without mixup, and with the same boxes."""
    monkeypatch.setattr(np.random, "beta", lambda a, b: 1.0)
    monkeypatch.setattr(np.random, "uniform", lambda low, high: low)
    monkeypatch.setattr(np.random, "rand", lambda: 0.5)
    options = {"feature_map": "map"} if build is SANM else {}
    method = build(warmup_epochs=1, alpha=0.0, **options)
    both = step_cost.contest(method)
    if build is SANM:
        method.mask_draws.zero_()
        method.mask_draws[:, 2:] = 0.5
    plain, ours = both["plain"](), both["ours"]()
    assert plain > 1
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_a_step_launches_little_and_reads_nothing():
    found = step_cost.costs()
    assert {name: cost["ours"] for name, cost in found.items()} == {"dividemix": (13, 0), "sanm": (30, 0)}
    assert found["dividemix"]["plain"][0] > 60
    assert found["sanm"]["plain"][0] > 1000
    text = "\n".join(step_cost.lines(found))
    assert "| dividemix |" in text
    assert "| sanm |" in text


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("method", bookkeeping.FASTLNL)
def test_research_code_does_the_same(method, classes, monkeypatch):
    """Loss and gradient of the first step; whom a split takes for clean after an epoch."""
    monkeypatch.setattr(steps, "NUM_SAMPLES", 2000)
    batches = steps.Batches(steps.Setting("mlp", "", (4,), 64, classes, False, 1), "cpu")
    assert steps.why_refused(method, batches, classes) is None
    heads = [builds[method](batches.label, classes) for builds in (bookkeeping.FASTLNL, plain_bookkeeping.PLAIN)]
    if heads[0].end_epoch is None:
        return
    ours, theirs = heads
    for head in heads:
        steps.epoch_seconds(head, batches, "cpu", 1)
    same = (ours.end_epoch() > 0.5) == (theirs.end_epoch() > 0.5)
    assert same.double().mean() > 0.99


def test_a_difference_is_refused(monkeypatch):
    monkeypatch.setattr(steps, "NUM_SAMPLES", 200)
    monkeypatch.setitem(plain_bookkeeping.PLAIN, "alr", bookkeeping.elr)
    batches = steps.Batches(steps.Setting("mlp", "", (4,), 16, 10, False, 1), "cpu")
    assert "differ by" in steps.why_refused("alr", batches, 10)


@pytest.mark.parametrize(
    ("build", "launches"),
    [
        (bookkeeping.cross_entropy, 6),
        (bookkeeping.alr, 4),
        (bookkeeping.elr, 4),
        (bookkeeping.cross_entropy_of_two, 11),
        (bookkeeping.ido, 4),
        (bookkeeping.crema, 18),
        (bookkeeping.dividemix, 8),
    ],
    ids=["ce", "alr", "elr", "ce of two views", "ido", "crema", "dividemix"],
)
def test_bookkeeping_launches_exactly_so_much_and_reads_nothing(build, launches, monkeypatch):
    """From the logits to their gradient, label memory and scores included; fewer is a reason to write it down here."""
    monkeypatch.setattr(steps, "NUM_SAMPLES", 200)
    batches = steps.Batches(steps.Setting("mlp", "", (4,), 16, 10, False, 1), "cpu")
    step = steps.head_step(build(batches.label, 10), batches)
    step()
    assert counting.counted_call(step) == (launches, 0)


def test_the_end_of_an_epoch_is_held_against_scikit_learn():
    ours, vectorised, looped = epochs.measure(3000, False, "cpu")
    assert (ours["by"], ours["refused"], vectorised["refused"], looped["refused"]) == ("fastlnl", None, None, None)
    assert "same side of 0.5" in looped["difference"]
    assert "GB, " in epochs.measure(10**13, False, "cpu")[0]["refused"]


def test_bytes_of_a_sample():
    found = epochs.bytes_a_sample(100)
    assert (found["ALR, float32"], found["ALR, bfloat16"], found["ALR, topk:16"]) == (400, 200, 66)
    assert (found["SampleDynamics"], found["IDO"], found["DivideMix, a network"]) == (32, 4, 9)


def test_the_counter_tells_launches_from_views_and_reads():
    x = torch.ones(4, requires_grad=True)

    def step():
        y = x.view(2, 2).t()[0]  # views
        assert float(y.detach().cpu().sum()) == 2.0  # a read, a launch, a read
        return y.sum()

    launches, reads = counting.counted(step)
    assert reads == 2
    assert launches >= 3  # two sums, and the backward pass
