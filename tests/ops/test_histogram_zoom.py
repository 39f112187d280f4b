"""histogram_zoom: nothing is lost, the window is in parts, what is outside it stays as it was."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from truths import same_bits

from fastlnl.backend import use_backend
from fastlnl.errors import ShapeError
from fastlnl.ops.histogram_zoom import PARTS, WINDOW, histogram_zoom
from fastlnl.ops.value_histogram import BINADES, SPAN, value_histogram

pytestmark = pytest.mark.usefixtures("poison")


def losses(n, seed=0):
    random = np.random.default_rng(seed)
    half = n // 2
    return torch.from_numpy(np.concatenate([random.gamma(0.5, 0.4, half), random.normal(4, 1, n - half)])).float()


def zoomed(x, at, bins=4096, group=None, groups=1, limits=None):
    at = torch.as_tensor(at, dtype=torch.float64).reshape(groups).to(x.device)
    h = value_histogram(x, group, groups, bins, limits)
    return h, histogram_zoom(x, group, h, at)


def edges(bins, low, high):
    """Lower edges of the bins, and the end of the last."""
    width = bins // BINADES
    y = np.concatenate([2.0**e * (1 + np.arange(width) / width) for e in range(BINADES)] + [[2.0**BINADES]])
    return low + (y - 1) * (high - low) / SPAN


@pytest.mark.parametrize(("bins", "at"), [(256, 1.7), (4096, 0.05), (65536, 0.0)])
def test_every_part_is_counted_between_its_edges(bins, at, device):
    x = losses(2000)
    h, zoom = zoomed(x.to(device), at, bins)
    counts, value = zoom.counts[0].cpu().numpy(), zoom.value[0].cpu().numpy()
    low, high = h.limits[0].tolist()
    coarse = edges(bins, low, high)
    first = np.clip(np.searchsorted(coarse, at, side="right") - 1 - WINDOW // 2, 0, bins - WINDOW)
    assert counts.shape == value.shape == (bins + WINDOW * (PARTS - 1),)
    inside = slice(first, first + WINDOW * PARTS)
    for part, whole in ((slice(0, first), slice(0, first)), (slice(inside.stop, None), slice(first + WINDOW, None))):
        assert (counts[part] == h.counts[0, whole].cpu().numpy()).all()
        assert (value[part] == h.mean[0, whole].cpu().numpy()).all()
    parts = counts[inside].reshape(WINDOW, PARTS)
    assert (parts.sum(1) == h.counts[0, first : first + WINDOW].cpu().numpy()).all()
    fine = np.concatenate([np.linspace(coarse[b], coarse[b + 1], PARTS + 1)[:-1] for b in range(first, first + WINDOW)])
    fine = np.append(fine, coarse[first + WINDOW])
    exact = np.histogram(x.double().numpy(), fine)[0]
    assert np.abs(np.cumsum(parts) - np.cumsum(exact)).max() <= 1  # a value within 2^-24 of an edge may cross it
    some, slack = counts[inside] > 0, 1e-6 * (high - low)
    assert some.sum() > 3
    assert (value[inside][some] >= fine[:-1][some] - slack).all()
    assert (value[inside][some] <= fine[1:][some] + slack).all()
    assert (np.diff(value[counts > 0]) >= 0).all()


@pytest.mark.parametrize("name", ["numba", "triton"])
def test_backends_agree(name):
    x, group = losses(3000), torch.randint(-1, 4, (3000,))
    x[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    limits = torch.tensor([[0.1, 3.0]], dtype=torch.float64)
    for arguments in ((x, 1.2), (x, 9.0, 512), (x, -3.0), (x, [0.3, 2.0, 4.0], 256, group, 3),
                      (x, 1.2, 4096, None, 1, limits)):  # fmt: skip
        with use_backend("reference"):
            expected = zoomed(*arguments)[1]
        with use_backend(name):
            zoom = zoomed(*arguments)[1]
        assert torch.equal(zoom.counts, expected.counts)
        assert torch.allclose(zoom.value, expected.value, rtol=0, atol=1e-14)


def test_order_and_threads_change_no_bit():
    from fastlnl.ops.histogram_zoom.numba_kernel import SERIAL_BELOW

    x, found = losses(SERIAL_BELOW + 70_001), []
    for threads, order in ((1, slice(None)), (3, slice(None)), (2, torch.randperm(len(x)))):
        torch.set_num_threads(threads)
        with use_backend("numba"):
            found.append(zoomed(x[order], 1.5)[1])
    with use_backend("reference"):
        found.append(zoomed(x, 1.5)[1]._replace(value=found[0].value))
    for other in found[1:]:
        assert all(same_bits(a, b) for a, b in zip(found[0], other, strict=True))


def test_groups_are_as_alone(device):
    x, group = losses(1500), torch.randint(-2, 6, (1500,))
    x[:4], group[:4] = torch.tensor([torch.nan, torch.inf, 1, 2]), torch.tensor([0, 1, 1, 5])
    group[group == 3] = 2  # nobody is left in 3
    at = [0.2, 1.0, 2.0, 0.0, 5.0]
    _, together = zoomed(x.to(device), at, 256, group.to(device), 5)
    for g in range(5):
        _, alone = zoomed(x[group == g].to(device), at[g], 256)
        assert all(same_bits(a[g], b[0]) for a, b in zip(together, alone, strict=True))
    assert together.counts[3].sum() == 0


@pytest.mark.parametrize("values", [[], [torch.nan], [2.5] * 9, [-3e38, 3e38, 1e38], [0.0, 1e-45, 2e-45]])
def test_few_values(values, device):
    x = torch.tensor(values).to(device)
    _, zoom = zoomed(x, 2.5, 256)
    finite, counted = x[x.isfinite()].double().sort().values, zoom.counts > 0
    assert zoom.counts.sum() == len(finite)
    assert zoom.value.isfinite().all()
    mean = zoom.value[counted].repeat_interleave(zoom.counts[counted])
    assert ((mean - finite).abs() <= 2.0**-22 * (1e-38 + finite.abs().amax() if len(finite) else 0)).all()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40), st.integers(0, 39))
def test_any_values(values, pick):
    """Numba against the reference, from subnormals to the largest float; nothing is lost in the window."""
    x = torch.tensor(values, dtype=torch.float32)
    at = x[pick % len(x)].nan_to_num().double()
    with use_backend("reference"):
        expected = zoomed(x, at, 256)[1]
    with use_backend("numba"):
        zoom = zoomed(x, at, 256)[1]
    assert torch.equal(zoom.counts, expected.counts)
    assert zoom.counts.sum() == x.isfinite().sum()
    assert zoom.value.isfinite().all()
    reach = 2 * x.double().nan_to_num(0, 0, 0).abs().max()
    assert torch.allclose(zoom.value, expected.value, rtol=1e-12, atol=1e-12 * float(reach))


def test_refused():
    x, h = torch.zeros(3), value_histogram(torch.zeros(3))
    two, at = value_histogram(x, torch.zeros(3).long(), 2), torch.zeros(1).double()
    with pytest.raises(ShapeError, match=r"x is \(3,\) float64; expected contiguous \(N,\) float32"):
        histogram_zoom(x.double(), None, h, at)
    with pytest.raises(ShapeError, match="the histogram has 2 groups but group is None"):
        histogram_zoom(x, None, two, torch.zeros(2).double())
    with pytest.raises(ShapeError, match=r"group is \(2,\) int64; expected contiguous \(3,\) int64"):
        histogram_zoom(x, torch.zeros(2).long(), h, at)
    with pytest.raises(ShapeError, match=r"at is \(1,\) float32; expected contiguous \(1,\) float64"):
        histogram_zoom(x, None, h, at.float())
