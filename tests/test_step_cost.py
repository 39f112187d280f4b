"""The benchmark of a step's launches compares two ways to the same loss, and ours reads nothing."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastlnl.methods import SANM, DivideMix

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import step_cost


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
    assert {name: cost["ours"][1] for name, cost in found.items()} == {"dividemix": 0, "sanm": 0}
    assert found["dividemix"]["ours"][0] <= 16 < 60 < found["dividemix"]["plain"][0]
    assert found["sanm"]["ours"][0] <= 32 < 1000 < found["sanm"]["plain"][0]
    text = "\n".join(step_cost.lines(found))
    assert "| dividemix |" in text
    assert "| sanm |" in text


def test_the_counter_tells_launches_from_views_and_reads():
    x = torch.ones(4, requires_grad=True)

    def step():
        y = x.view(2, 2).t()[0]  # views
        assert float(y.detach().cpu().sum()) == 2.0  # a read, a launch, a read
        return y.sum()

    launches, reads = step_cost.counted(step)
    assert reads == 2
    assert launches >= 3  # two sums, and the backward pass
