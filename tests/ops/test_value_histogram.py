"""value_histogram: every value in the bin its bits say, exact sums, and the same bits whatever the order."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from truths import same_bits

from fastlnl.backend import use_backend
from fastlnl.errors import ShapeError
from fastlnl.ops.value_histogram import BINADES, SPAN, value_histogram

pytestmark = pytest.mark.usefixtures("poison")


def losses(n, seed=0):
    random = np.random.default_rng(seed)
    half = n // 2
    return torch.from_numpy(np.concatenate([random.gamma(0.5, 0.4, half), random.normal(4, 1, n - half)])).float()


def edges(bins, low, high):
    """Lower edges of all bins, and the end of the last: equal steps between powers of two."""
    width = bins // BINADES
    y = np.concatenate([2.0**e * (1 + np.arange(width) / width) for e in range(BINADES)] + [[2.0**BINADES]])
    return low + (y - 1) * (high - low) / SPAN


@pytest.mark.parametrize("bins", [256, 4096])
def test_values_are_counted_between_the_edges(bins, device):
    x = losses(3000)
    h = value_histogram(x.to(device), bins=bins)
    low, high = x.min().item(), x.max().item()
    assert h.limits.tolist() == [[low, high]]
    count, mean = h.counts[0].cpu().numpy(), h.mean[0].cpu().numpy()
    exact = np.histogram(x.double().numpy(), edges(bins, low, high))[0]
    assert count.sum() == 3000
    assert np.abs(np.cumsum(count) - np.cumsum(exact)).max() <= 1  # a value within 2^-24 of an edge may cross it
    inside, around = count > 0, edges(bins, low, high)
    slack = 1e-7 * (high - low)
    assert (mean[inside] >= around[:-1][inside] - slack).all()
    assert (mean[inside] <= around[1:][inside] + slack).all()
    assert (mean[~inside] == 0).all()
    assert abs((count * mean).sum() - x.double().sum().item()) <= 3000 * 2.0**-23 * (high - low)


@pytest.mark.parametrize("name", ["numba", "triton"])
def test_backends_agree(name):
    x, group = losses(3000), torch.randint(-1, 4, (3000,))
    for arguments in ((x,), (x, group, 3), (x, group, 3, 512)):
        with use_backend("reference"):
            expected = value_histogram(*arguments)
        with use_backend(name):
            h = value_histogram(*arguments)
        assert torch.equal(h.counts, expected.counts)
        assert torch.equal(h.limits, expected.limits)
        assert torch.allclose(h.mean, expected.mean, rtol=0, atol=1e-14)


def test_order_changes_no_bit(device):
    x, group = losses(2500), torch.randint(0, 3, (2500,))
    order = torch.randperm(2500)
    y, ids = x[order].to(device), group[order].to(device)
    x, group = x.to(device), group.to(device)
    for one, other in (
        (value_histogram(x), value_histogram(y)),
        (value_histogram(x, group, 3), value_histogram(y, ids, 3)),
    ):
        assert all(same_bits(a, b) for a, b in zip(one, other, strict=True))


def test_threads_and_full_tables_change_no_bit():
    from fastlnl.ops.value_histogram.numba_kernel import FULL, SERIAL_BELOW

    x = losses(FULL + 300_000)
    assert len(x) > SERIAL_BELOW
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with use_backend("numba"):
            found.append(value_histogram(x))
    with use_backend("reference"):
        found.append(value_histogram(x)._replace(mean=found[0].mean))
    for other in found[1:]:
        assert all(same_bits(a, b) for a, b in zip(found[0], other, strict=True))


def test_groups_are_histograms_of_their_own(device):
    x, group = losses(2000), torch.randint(-2, 6, (2000,))
    x[:7] = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.nan, 1, 2, 3])
    group[:7] = torch.tensor([0, 1, 1, 5, 1, 1, 1])
    group[group == 3] = 2  # nobody is left in 3
    together = value_histogram(x.to(device), group.to(device), 5)
    for g in range(5):
        alone = value_histogram(x[group == g].to(device))
        for a, b in zip(together, alone, strict=True):
            assert same_bits(a[g], b[0])
    assert together.left_out.tolist() == [1, 2, 0, 0, 0]
    assert together.counts[3].sum() == 0


@pytest.mark.parametrize("fill", [0.0, -3.5, 3e38, 1e-45])
def test_equal_values(fill, device):
    h = value_histogram(torch.full((9,), fill).to(device))
    value = torch.tensor(fill).double().item()
    assert h.limits.tolist() == [[value, value]]
    assert h.counts[0, 0] == 9
    assert h.mean[0, 0] == value


def test_nothing_but_nan(device):
    h = value_histogram(torch.tensor([torch.nan, torch.inf, -torch.inf]).to(device))
    assert (h.limits.tolist(), h.left_out.tolist(), int(h.counts.sum())) == ([[0.0, 0.0]], [3], 0)
    empty = value_histogram(torch.empty(0).to(device))
    assert (empty.limits.tolist(), empty.left_out.tolist(), int(empty.counts.sum())) == ([[0.0, 0.0]], [0], 0)
    assert empty.mean.eq(0).all()


def test_given_limits_leave_values_out(device):
    x = torch.tensor([0.0, 1.0, 1.5, 2.0, 3.0, torch.nan])
    limits = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    h = value_histogram(x.to(device), limits=limits.to(device))
    assert h.counts.sum() == 3
    assert h.left_out.tolist() == [1]
    assert torch.allclose(h.mean[h.counts > 0].cpu(), torch.tensor([1.0, 1.5, 2.0]).double(), rtol=0, atol=2e-7)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_any_values(values):
    """Numba against the reference, from subnormals to the largest float."""
    x = torch.tensor(values, dtype=torch.float32)
    with use_backend("reference"):
        expected = value_histogram(x, bins=256)
    with use_backend("numba"):
        h = value_histogram(x, bins=256)
    assert torch.equal(h.counts, expected.counts)
    assert torch.equal(h.left_out, expected.left_out)
    assert h.mean.isfinite().all()
    reach = (expected.limits[0, 1] - expected.limits[0, 0]).item()
    assert torch.allclose(h.mean, expected.mean, rtol=1e-12, atol=1e-12 * reach)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((torch.zeros(3, 1),), r"x is \(3, 1\) float32; expected contiguous \(N,\) float32"),
        ((torch.zeros(3).double(),), r"x is \(3,\) float64"),
        ((torch.zeros(3), torch.zeros(2).long()), r"group is \(2,\) int64; expected contiguous \(3,\) int64"),
        ((torch.zeros(3), None, 1, 1000), "bins is 1000; expected a power of two"),
        ((torch.zeros(3), None, 1, 256, torch.zeros(1, 2)), r"limits is \(1, 2\) float32; expected \(1, 2\) float64"),
    ],
)
def test_refused(arguments, text):
    with pytest.raises(ShapeError, match=text):
        value_histogram(*arguments)
