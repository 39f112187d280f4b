"""mixture_posterior against float64 truth: every form of the log-odds, its roots, its limits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from truths import same_bits

from fastlnl.backend import use_backend
from fastlnl.errors import ShapeError
from fastlnl.ops.mixture_posterior import mixture_posterior

pytestmark = pytest.mark.usefixtures("poison")
INF = float("inf")
# c, m0, h0, m1, h1, low, high, scale: two roots, none, equal widths, one below the other's tail, held to limits
GAUSSIANS = {
    "two roots": [1.2, 0.1, -56.0, 0.7, -10.5, -INF, INF, 0],
    "no root": [3.0, 0.4, -9.0, 0.5, -10.0, -INF, INF, 0],
    "equal widths": [0.3, -1.0, -8.0, 2.0, -8.0, -INF, INF, 0],
    "nearly equal widths": [0.3, -1.0, -8.0, 2.0, -8.0 - 1e-13, -INF, INF, 0],
    "wide lower": [-0.5, 0.0, -0.3, 1.0, -40.0, -INF, INF, 0],
    "far away": [0.1, 1000.0, -50.0, 1001.0, -2.0, -INF, INF, 0],
    "limits": [1.2, 0.1, -56.0, 0.7, -10.5, 0.05, 0.9, 0],
    "by rule": [1000.0, 0, 0, 0, 0, 0, 0, 0],
}


def truth(x, odds, beta=False):
    c, p0, p1, p2, p3, low, high, scale = odds
    v = np.clip(x.double().numpy(), *((p2, p3) if beta else (low, high)))
    if beta:
        q = c + p0 * np.log(1e-6 + 0.999998 * (v - low) * scale) + p1 * np.log(1e-6 + 0.999998 * (high - v) * scale)
    else:
        q = c + p1 * (v - p0) ** 2 - p3 * (v - p2) ** 2
    q = np.clip(q, -1000, 1000)
    with np.errstate(over="ignore"):
        return q, 1 / (1 + np.exp(-q))


def values(odds, n=3001):
    middle, reach = (odds[1] + odds[3]) / 2, 3 + 3 * abs(odds[3] - odds[1])
    return torch.linspace(middle - reach, middle + reach, n)


@pytest.mark.parametrize("name", GAUSSIANS)
def test_gaussian(name, device):
    odds = GAUSSIANS[name]
    x, rows = values(odds), torch.tensor([odds], dtype=torch.float64)
    q, p = truth(x, odds)
    ours = mixture_posterior(x.to(device), rows.to(device)).cpu().double().numpy()
    assert np.abs(ours - p).max() <= 2.5e-7
    ours = mixture_posterior(x.to(device), rows.to(device), log_odds=True).cpu().double().numpy()
    assert (np.abs(ours - q) <= 1e-6 * np.abs(q) + 1e-9).all()
    assert ((ours > 0) == (q > 0)).all()  # not one changes sides


def test_sides_are_kept_next_to_a_root(device):
    """The 4,001 floats around each boundary."""
    odds = GAUSSIANS["two roots"]
    grid = np.linspace(-2, 2, 2_000_001)
    q = odds[0] + odds[2] * (grid - odds[1]) ** 2 - odds[4] * (grid - odds[3]) ** 2
    for i in np.flatnonzero(np.diff(np.sign(q)) != 0):
        bits = torch.tensor(grid[i]).float().view(torch.int32) + torch.arange(-2000, 2001, dtype=torch.int32)
        x = bits.view(torch.float32)
        exact, _ = truth(x, odds)
        ours = mixture_posterior(x.to(device), torch.tensor([odds], dtype=torch.float64).to(device), log_odds=True)
        sure = np.abs(exact) > 1e-12
        assert ((ours.cpu().numpy() > 0) == (exact > 0))[sure].all()


def test_beta(device):
    odds = [-0.4, -0.7, 1.3, -0.3, 1.2, -0.5, 1.5, 0.5]
    x = torch.linspace(-1, 2, 1001)
    q, p = truth(x, odds, beta=True)
    rows = torch.tensor([odds], dtype=torch.float64).to(device)
    assert np.abs(mixture_posterior(x.to(device), rows, beta=True).cpu().numpy() - p).max() <= 2e-7
    assert np.abs(mixture_posterior(x.to(device), rows, beta=True, log_odds=True).cpu().numpy() - q).max() <= 2e-6


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 1025])
def test_groups_are_as_alone(n, device):
    rows = torch.tensor([GAUSSIANS[name] for name in ("two roots", "wide lower", "by rule")], dtype=torch.float64)
    x, group = torch.randn(n), torch.randint(-1, 4, (n,))
    ours = mixture_posterior(x.to(device), rows.to(device), group.to(device)).cpu()
    for g in range(3):
        alone = mixture_posterior(x[group == g].to(device), rows[g : g + 1].to(device)).cpu()
        assert torch.allclose(ours[group == g], alone, rtol=0, atol=2e-7)
    assert (ours[(group < 0) | (group > 2)] == 0).all()


@pytest.mark.parametrize("log_odds", [False, True])
def test_values_that_are_not_finite(log_odds, device):
    x = torch.tensor([torch.nan, torch.inf, -torch.inf] * 7 + [0.1])
    for beta, odds in (
        (False, GAUSSIANS["two roots"]),
        (False, GAUSSIANS["by rule"]),
        (True, [0, 1, 1, 0, 1, 0, 1, 1]),
    ):
        ours = mixture_posterior(
            x.to(device), torch.tensor([odds], dtype=torch.float64).to(device), beta=beta, log_odds=log_odds
        )
        assert (ours[:-1] == (-1000 if log_odds else 0)).all()
        assert ours[-1] > (-1000 if log_odds else 0)


@pytest.mark.parametrize("threads", [1, 2])
def test_above_the_parallel_threshold(threads):
    from fastlnl.ops.mixture_posterior.numba_kernel import SERIAL_BELOW

    torch.set_num_threads(threads)
    x, odds = torch.randn(SERIAL_BELOW + 77), torch.tensor([GAUSSIANS["two roots"]]).double()
    with use_backend("numba"):
        ours = mixture_posterior(x, odds)
        assert same_bits(ours, torch.cat([mixture_posterior(x[:1000], odds), mixture_posterior(x[1000:], odds)]))


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-20, 20), st.floats(-5, 5), st.floats(-5, 5), st.floats(-6, 6), st.floats(-6, 6), st.floats(-12, 12)
)  # fmt: skip
def test_any_mixture(c, m0, m1, log_h0, log_h1, scale):
    """numba's float32 product form against float64, at all sizes of the values."""
    unit = 10.0**scale
    h0, h1 = -(10.0**log_h0) / unit**2, -(10.0**log_h1) / unit**2
    odds = [c, m0 * unit, h0, m1 * unit, h1, -INF, INF, 0]
    x = torch.linspace(-8, 8, 333) * unit
    p = truth(x, odds)[1]
    with use_backend("numba"):
        ours = mixture_posterior(x, torch.tensor([odds], dtype=torch.float64))
    noise = 1e-15 * (np.abs(h0) * (8 * unit + abs(m0 * unit)) ** 2 + np.abs(h1) * (8 * unit + abs(m1 * unit)) ** 2)
    assert (np.abs(ours.double().numpy() - p) <= 1e-6 + noise).all()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((torch.zeros(3).double(), torch.zeros(1, 8).double()), r"x is \(3,\) float64"),
        ((torch.zeros(3), torch.zeros(1, 8)), r"odds is \(1, 8\) float32; expected contiguous \(G, 8\) float64"),
        ((torch.zeros(3), torch.zeros(2, 8).double()), "odds has 2 groups but group is None"),
        ((torch.zeros(3), torch.zeros(2, 8).double(), torch.zeros(3)), r"group is \(3,\) float32"),
    ],
)
def test_refused(arguments, text):
    with pytest.raises(ShapeError, match=text):
        mixture_posterior(*arguments)
