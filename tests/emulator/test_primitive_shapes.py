"""csrc's kernels beside the row pass, where they take another way: sizes, places, repeated ids, full tables."""

import pytest
import torch
from plain_dynamics import State, compare, run_epochs, statistics
from truths import same_bits

from fastlnl.backend import use_backend
from fastlnl.mixture import GaussianMixture1D
from fastlnl.ops.dynamics import layout
from fastlnl.ops.histogram_zoom import histogram_zoom
from fastlnl.ops.mixture_em import EMInput, EMOptions, mixture_em
from fastlnl.ops.mixture_posterior import mixture_posterior
from fastlnl.ops.row_loss import RowStats
from fastlnl.ops.select import cuda_kernel as select_kernel
from fastlnl.ops.select import select
from fastlnl.ops.value_histogram import value_histogram

pytestmark = pytest.mark.usefixtures("poison", "device")


@pytest.fixture
def expected(monkeypatch):
    """Runs a call on the reference backend."""
    from fastlnl import backend

    found = backend._find

    def run(function, *arguments, **options):
        with monkeypatch.context() as patch, use_backend("reference"):
            patch.setattr(
                backend, "implementation", lambda name, like: found(name, like.device.type, like.dtype, "reference")
            )
            return function(*arguments, **options)

    return run


@pytest.fixture
def little_shared_memory(emulator):
    emulator.emulator_shared_limit(48 * 1024)
    yield
    emulator.emulator_shared_limit(227 * 1024)


# ---- dynamics


@pytest.mark.parametrize("num_samples", [1, 5, 300])
def test_dynamics_of_several_blocks(num_samples):
    """A batch of one sample 300 times; ids that repeat in a block and across; hardly any."""
    compare(*run_epochs("cpu", 2, [300, 129], num_samples, second=True, rows=2))


def test_dynamics_count_like_the_reference(expected):
    ours = run_epochs("cpu", 2, [150, 40], 60, second=True, rows=2)[0]
    plain = expected(run_epochs, "cpu", 2, [150, 40], 60, second=True, rows=2)[0]
    assert torch.equal(ours.records[:, : layout.MEAN], plain.records[:, : layout.MEAN])
    assert torch.equal(ours.counters, plain.counters)


def test_records_that_begin_anywhere():
    """Not at 16 bytes: word by word."""
    stats = statistics(40, 5, torch.Generator())
    index, label = torch.randint(0, 20, (40,)), torch.zeros(40)
    place, state = torch.zeros(20 * 8 + 1, dtype=torch.int32), State(20, "cpu")
    moved = State(20, "cpu")
    moved.records = place[1:].view(20, 8)
    for one in (state, moved):
        one.enter(index, label.long(), stats, ("nll", "p_label"), 0.9)
    assert torch.equal(state.records, moved.records)


def test_the_first_offence_of_a_block_is_recorded():
    stats = statistics(200, 5, torch.Generator())
    index, label = torch.arange(200), torch.zeros(200).long()
    index[[20, 70]], label[60] = 500, 9
    state = State(200, "cpu")
    state.enter(index, label, RowStats(stats.numbers, stats.prediction), ("nll", "p_label"), 0.9)
    assert state.counters[layout.ERRORS :].tolist() == [2, 20, 500, 500]


# ---- value_histogram


def skewed(n):
    """Losses of a network that has memorised: nearly all in a few bins."""
    return torch.where(torch.rand(n) < 0.9, 1e-4 * torch.rand(n), 20 * torch.rand(n))


@pytest.mark.parametrize(
    ("n", "bins"),
    [(70_000, 256), (5000, 4096), (3000, 16384), (3000, 65536)],
    ids=["flushed before it overflows", "plain", "all of shared memory", "more than shared memory"],
)
@pytest.mark.parametrize("draw", [skewed, torch.randn, torch.ones], ids=["skewed", "normal", "equal"])
def test_histogram_of_one_group(n, bins, draw, expected):
    same_histogram(expected, draw(n), bins=bins)


@pytest.mark.parametrize("groups", [1, 3, 33])
def test_histogram_of_groups(groups, expected):
    x, group = skewed(6000), torch.randint(-1, groups + 1, (6000,))
    x[::77] = torch.nan
    same_histogram(expected, x, group, groups, 256)
    limits = torch.tensor([[0.0, 5e-5]], dtype=torch.float64).repeat(groups, 1)
    same_histogram(expected, x, group, groups, 256, limits)


def test_histogram_of_values_that_begin_anywhere(expected):
    same_histogram(expected, torch.randn(2100)[1:])


def same_histogram(expected, *arguments, **options):
    ours, plain = value_histogram(*arguments, **options), expected(value_histogram, *arguments, **options)
    for name in ("counts", "limits", "left_out"):
        assert torch.equal(getattr(ours, name), getattr(plain, name)), name
    reach = (plain.limits[:, 1:] - plain.limits[:, :1]).clamp(min=1e-30)
    assert ((ours.mean - plain.mean).abs() <= 1e-14 * reach.clamp(min=plain.mean.abs())).all()


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("bins", [256, 4096])
def test_zoom(groups, bins, expected):
    x, group = skewed(5001)[1:], torch.randint(-1, groups + 1, (5000,))
    x[::50] = torch.inf
    h = expected(value_histogram, x, group, groups, bins)
    for at in (0.0, 3e-5, 7.0, 100.0):
        arguments = x, group, h, torch.full((groups,), at, dtype=torch.float64)
        ours, plain = histogram_zoom(*arguments), expected(histogram_zoom, *arguments)
        assert torch.equal(ours.counts, plain.counts)
        assert torch.allclose(ours.value, plain.value, rtol=0, atol=1e-14 * 20)


# ---- mixture_em and mixture_posterior


def many_points(n):
    value = torch.cat([0.3 * torch.rand(n // 2), 0.6 + 0.3 * torch.rand(n - n // 2)]).double().sort().values
    counts, limits = torch.randint(0, 5, (n,)), torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    start = torch.tensor([[0.5, 0.5, 1.0, 2.0, 2.0, 1.0]], dtype=torch.float64)
    return EMInput(value, counts, torch.tensor([0, n]), limits, start, torch.tensor([[0.3, 0.7]]).double())


@pytest.mark.parametrize("init", ["lloyd", "quantile", "kmeans++"])
def test_points_beyond_shared_memory(init, little_shared_memory, expected):
    """1,750 fit there; some 2,800 count."""
    points = many_points(3500)._replace(start=None)
    same_fit(points, EMOptions(init=init, max_iter=3), expected)


@pytest.mark.parametrize("family", ["beta_moments", "beta_likelihood"])
def test_beta_points_beyond_shared_memory(family, little_shared_memory, expected):
    same_fit(many_points(1700), EMOptions(family, max_iter=2), expected)


def test_points_that_count_nothing_are_left_behind(expected):
    points = many_points(3000)._replace(start=None)
    kept = points.counts > 0
    alone = points._replace(value=points.value[kept], counts=points.counts[kept], offset=torch.tensor([0, kept.sum()]))
    for x, y in zip(mixture_em(points, EMOptions()), mixture_em(alone, EMOptions()), strict=True):
        assert same_bits(x, y)


def test_a_whole_fit(expected):
    """Histogram, start, zoom, EM and posterior, none of them by another backend."""
    x = torch.cat([skewed(1500), 8 + torch.randn(500)])

    def clean(x):
        fit = GaussianMixture1D().fit(x)
        return fit.clean_prob(x), fit.means_

    ours, plain = clean(x), expected(clean, x)
    assert torch.allclose(ours[0], plain[0], rtol=0, atol=1e-6)
    assert torch.allclose(ours[1], plain[1], rtol=1e-9, atol=0)


def same_fit(points, options, expected):
    ours, plain = mixture_em(points, options), expected(mixture_em, points, options)
    assert torch.allclose(ours.fitted, plain.fitted, rtol=1e-8, atol=1e-9)
    assert torch.allclose(ours.odds, plain.odds, rtol=1e-7, atol=1e-8)
    assert torch.equal(ours.info, plain.info)
    assert torch.allclose(ours.cut, plain.cut, rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta", [False, True])
@pytest.mark.parametrize("n", [1, 1023, 1024, 1025, 4100])
def test_posterior_of_any_size_that_begins_anywhere(n, beta, expected):
    x, group = torch.rand(n + 1)[1:], torch.randint(-1, 3, (n,))
    odds = torch.tensor([[0.2, 1.5, -2.0, 0.1, 0.9, 0, 1, 1] if beta else [0.5, 0.2, -9.0, 0.8, -3.0, 0, 1, 0]])
    odds = odds.double().repeat(2, 1)
    for log_odds in (False, True):
        ours = mixture_posterior(x, odds, group, beta=beta, log_odds=log_odds)
        plain = expected(mixture_posterior, x, odds, group, beta=beta, log_odds=log_odds)
        assert torch.allclose(ours, plain, rtol=3e-7, atol=2e-7)


# ---- select


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("groups", [1, 30])
def test_selection_over_many_blocks(groups, largest, expected):
    n = 30_000
    assert n > select_kernel.ONE_LAUNCH
    scores, group = torch.randn(n).round(decimals=2), torch.randint(-1, groups + 1, (n,))
    quota = torch.randint(-100, 2 * n // groups, (groups,))
    ours, plain = select(scores, quota, group, largest=largest), expected(select, scores, quota, group, largest=largest)
    assert torch.equal(ours.mask, plain.mask)
    assert torch.equal(ours.cut, plain.cut)
