"""Exact EM on a cooperative grid: the fit of the reference, whatever the number of blocks and however often."""

import pytest
import torch
from test_primitive_shapes import expected  # noqa: F401
from truths import same_bits

from fastlnl.mixture import BetaMixture1D, GaussianMixture1D
from fastlnl.ops.mixture_em import EMInput, EMOptions, cuda_kernel, mixture_em

pytestmark = pytest.mark.usefixtures("poison", "device")
BETA_START = torch.tensor([[0.5, 0.5, 1.0, 2.0, 2.0, 1.0]], dtype=torch.float64)
WAYS = [("gaussian", "lloyd"), ("gaussian", "quantile"), ("gaussian", "kmeans++"), ("beta_moments", "lloyd"),
        ("beta_likelihood", "lloyd")]  # fmt: skip


@pytest.fixture
def processors(emulator, monkeypatch):
    """How many blocks a grid has at most; small groups have one, too."""
    monkeypatch.setattr(cuda_kernel, "BLOCK_POINTS", 1000)
    yield emulator.emulator_processors
    emulator.emulator_processors(1)


def values(n, groups=1):
    """Sorted in each group, the last of a group left out."""
    x = torch.cat([0.2 * torch.rand(groups, n // 2), 0.5 + 0.4 * torch.rand(groups, n - n // 2)], 1).double()
    x = x.sort(1).values
    counts = (torch.rand(groups, n) < 0.9).long()
    limits = torch.tensor([[0.0, 1.0]], dtype=torch.float64).repeat(groups, 1)
    start, draw = BETA_START.repeat(groups, 1), torch.tensor([[0.2, 0.9]]).double().repeat(groups, 1)
    return EMInput(x.view(-1), counts.view(-1), torch.arange(groups + 1) * n, limits, start, draw)


def same_fit(ours, plain):
    assert torch.allclose(ours.fitted, plain.fitted, rtol=0, atol=1e-6)
    assert torch.allclose(ours.odds, plain.odds, rtol=1e-6, atol=1e-6)
    assert torch.allclose(ours.cut, plain.cut, rtol=0, atol=1e-12)
    assert torch.equal(ours.info, plain.info)


@pytest.mark.parametrize(("family", "init"), WAYS)
def test_it_is_the_fit_of_the_reference(family, init, processors, expected):  # noqa: F811
    points, options = values(3300), EMOptions(family, init, tol=1e-9, max_iter=4)
    if family == "gaussian":
        points = points._replace(start=None)
    plain = expected(mixture_em, points, options)
    for blocks in (1, 3) if init == "kmeans++" else (3,):
        processors(blocks)
        ours = mixture_em(points, options)
        same_fit(ours, plain)
        assert all(same_bits(x, y) for x, y in zip(ours, mixture_em(points, options), strict=True))


def test_groups_are_fitted_one_after_another(processors, expected):  # noqa: F811
    processors(2)
    points = values(2100, groups=2)._replace(start=None)
    ours = mixture_em(points, EMOptions())
    same_fit(ours, expected(mixture_em, points, EMOptions()))
    alone = EMInput(points.value[2100:], points.counts[2100:], points.offset[:2], points.limits[1:], None, None)
    assert all(same_bits(x[1:], y) for x, y in zip(ours, mixture_em(alone, EMOptions()), strict=True))


def test_points_beyond_shared_memory(processors, emulator, expected):  # noqa: F811
    """A block holds 2,560 there, and has 2,700."""
    processors(2)
    emulator.emulator_shared_limit(48 * 1024)
    try:
        points = values(6000)._replace(start=None)
        same_fit(mixture_em(points, EMOptions(max_iter=2)), expected(mixture_em, points, EMOptions(max_iter=2)))
    finally:
        emulator.emulator_shared_limit(227 * 1024)


@pytest.mark.parametrize("counted", [0, 1, 3])
def test_hardly_any_value(counted, processors, expected):  # noqa: F811
    processors(3)
    points = values(3100)._replace(start=None)
    points.counts.zero_()
    points.counts[1500 : 1500 + counted] = 1
    same_fit(mixture_em(points, EMOptions()), expected(mixture_em, points, EMOptions()))


@pytest.mark.parametrize("mixture", [GaussianMixture1D, BetaMixture1D])
def test_a_whole_fit_without_bins(mixture, processors, expected):  # noqa: F811
    processors(3)
    x = torch.cat([0.2 * torch.rand(1600), 0.5 + 0.4 * torch.rand(1600)])

    def clean(x):
        fit = mixture(bins=None, max_iter=3).fit(x)
        return fit.clean_prob(x), fit.weights_

    ours, plain = clean(x), expected(clean, x)
    assert torch.allclose(ours[0], plain[0], rtol=0, atol=1e-6)
    assert torch.allclose(ours[1], plain[1], rtol=0, atol=1e-6)


def test_bins_and_many_groups_have_a_block_each(monkeypatch):
    seen = []
    monkeypatch.setattr(cuda_kernel.extension, "operators", lambda: type("O", (), {
        "mixture_em": staticmethod(lambda *arguments: seen.append(arguments[10]))}))  # fmt: skip
    for n, groups in ((4096 - 8 + 4096, 1), (8192, 1), (8193, 1), (10_000, 16), (10_000, 17)):
        offset, limits = torch.arange(groups + 1) * n, torch.zeros(groups, 2).double()
        x = torch.zeros(n * groups)
        cuda_kernel.mixture_em(EMInput(x.double(), x.long(), offset, limits, None, None), EMOptions())
    assert [sums is not None for sums in seen] == [False, False, True, True, False]
