"""mixture_em against scikit-learn, against golden values and against plain transcriptions, on every backend."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn.mixture import GaussianMixture
from truths import same_bits

from fastlnl.backend import use_backend
from fastlnl.errors import ShapeError
from fastlnl.ops.mixture_em import INITS, EMInput, EMOptions, MixtureStatus, definitions, mixture_em

pytestmark = pytest.mark.usefixtures("poison")
BETA_START = torch.tensor([[0.5, 0.5, 1.0, 2.0, 2.0, 1.0]], dtype=torch.float64)
GOLDEN_COUNTS = (9963, 9469, 6097, 4579, 5578, 14314)  # IDO's wrong events of 50,000 samples after five epochs
GOLDEN_VALUES = (0, 0.02, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 1)


def points(value, device, count=None, limits=(0.0, 1.0), start=None, draw=None):
    value = torch.as_tensor(value, dtype=torch.float64)
    count = torch.ones(len(value), dtype=torch.int64) if count is None else torch.as_tensor(count)
    order = value.argsort()
    made = EMInput(
        value[order], count[order], torch.tensor([0, len(value)]), torch.tensor([limits], dtype=torch.float64), start,
        draw,
    )  # fmt: skip
    return EMInput(*(None if x is None else x.to(device) for x in made))


def losses(n, seed=0):
    random = np.random.default_rng(seed)
    x = np.concatenate([random.gamma(0.5, 0.4, n // 2), random.normal(4, 1, n - n // 2)])
    return (x - x.min()) / (x.max() - x.min())


@pytest.mark.parametrize("start", [(0.5, 0.5, 0.1, 0.5, 0.01, 0.05), (0.9, 0.1, 0.6, 0.2, 0.001, 1.0)])
@pytest.mark.parametrize("options", [EMOptions(), EMOptions(reg_covar=1e-6, tol=1e-6, max_iter=60)])
def test_equals_scikit_learn_from_the_same_start(options, start, device):
    x = losses(900)
    w, m, v = np.array(start).reshape(3, 2)
    rival = GaussianMixture(
        2, weights_init=w, means_init=m[:, None], precisions_init=1 / v[:, None, None], reg_covar=options.reg_covar,
        tol=options.tol, max_iter=options.max_iter,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rival.fit(x[:, None])
    fit = mixture_em(points(x, device, start=torch.tensor([start], dtype=torch.float64)), options)
    order = rival.means_[:, 0].argsort()
    expected = np.concatenate([a.ravel()[order] for a in (rival.weights_, rival.means_, rival.covariances_)])
    assert np.abs(fit.fitted[0, :6].cpu().numpy() - expected).max() <= 1e-9
    assert abs(fit.fitted[0, 6].item() - rival.lower_bound_) <= 1e-9
    assert fit.info[0].tolist() == [rival.n_iter_, int(rival.converged_), 0]
    c, m0, h0, m1, h1 = fit.odds[0, :5].cpu().numpy()
    odds = c + h0 * (x - m0) ** 2 - h1 * (x - m1) ** 2
    assert np.abs(special.expit(odds) - rival.predict_proba(x[:, None])[:, order[0]]).max() <= 1e-6


def test_golden_lloyd_fit(device):
    """Equal to scikit-learn 1.9.1: its 2-means ends in the same split here."""
    fit = mixture_em(points(GOLDEN_VALUES, device), EMOptions())
    assert fit.info.tolist() == [[7, 1, 0]]
    expected = [0.598539251, 0.401460749, 0.108357244, 0.719846439, 0.008905147, 0.047572331]
    assert np.abs(fit.fitted[0, :6].cpu().numpy() - expected).max() <= 1e-8


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, [0.48287203, 0.51712797, 0.45002128, 1.04228499, 1.73621482, 0.24800282]),
        (20, [0.61017727, 0.38982273, 0.53130848, 1.20251926, 1.43019120, 0.12977893]),
    ],
)
def test_golden_counts_of_ido(steps, expected, device):
    """Bins with counts, and the same counts one by one."""
    options = EMOptions("beta_moments", tol=0.0, max_iter=steps)
    value = np.arange(6.0)
    fit = mixture_em(points(value, device, GOLDEN_COUNTS, (0.0, 5.0), BETA_START), options)
    assert np.abs(fit.fitted[0, :6].cpu().numpy() - expected).max() <= 1e-8
    assert fit.info[0, 0] == steps
    few = [count // 100 for count in GOLDEN_COUNTS]
    binned = mixture_em(points(value, device, few, (0.0, 5.0), BETA_START), options)
    single = mixture_em(points(np.repeat(value, few), device, None, (0.0, 5.0), BETA_START), options)
    assert torch.allclose(binned.fitted, single.fitted, rtol=0, atol=1e-12)


def test_maximum_likelihood_of_beta(device):
    """One EM step is scipy's weighted optimum: the derivative of the likelihood vanishes."""
    x = 1e-6 + (1 - 2e-6) * losses(600)
    start = torch.tensor([[0.6, 0.4, 1.0, 4.0, 5.0, 2.0]], dtype=torch.float64)
    options = EMOptions("beta_likelihood", tol=0.0, max_iter=1)
    fit = mixture_em(points(losses(600), device, start=start), options).fitted[0].cpu().numpy()
    density = np.stack([0.6 * stats.beta.pdf(x, 1, 5), 0.4 * stats.beta.pdf(x, 4, 2)])
    r = density / density.sum(0)
    for k in range(2):
        a, b = fit[2 + k], fit[4 + k]
        assert abs(fit[k] - r[k].mean()) <= 1e-9
        assert abs((r[k] * np.log(x)).sum() / r[k].sum() - special.digamma(a) + special.digamma(a + b)) <= 1e-7
        assert abs((r[k] * np.log1p(-x)).sum() / r[k].sum() - special.digamma(b) + special.digamma(a + b)) <= 1e-7
    bounds = [
        mixture_em(points(losses(600), device, start=start), options._replace(max_iter=n)).fitted[0, 6].item()
        for n in (1, 2, 3)
    ]
    assert bounds == sorted(bounds)  # every step climbs
    assert abs(bounds[0] - np.log(density.sum(0)).mean()) <= 1e-9


@pytest.mark.parametrize(
    ("ours", "exact"),
    [
        (definitions.log_gamma, special.gammaln),
        (definitions.digamma, special.digamma),
        (definitions.trigamma, lambda x: special.polygamma(1, x)),
    ],
)
def test_special_functions(ours, exact):
    x = np.logspace(-6, 6, 1001)
    found = ours(torch.from_numpy(x)).numpy()
    assert (np.abs(found - exact(x)) <= 1e-13 + 5e-14 * np.abs(exact(x))).all()


def test_quantile_start_cuts_at_the_median(device):
    """One step from the split by hand."""
    x = np.sort(losses(301))
    fit = mixture_em(points(x, device), EMOptions(init="quantile", max_iter=1))
    low, high = x[:151], x[151:]
    start = [151 / 301, 150 / 301, low.mean(), high.mean(), low.var() + 5e-4, high.var() + 5e-4]
    again = mixture_em(points(x, device, start=torch.tensor([start], dtype=torch.float64)), EMOptions(max_iter=1))
    assert torch.allclose(fit.fitted, again.fitted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("draw", [(0.0, 0.0), (0.2, 0.9), (0.999999, 0.5)])
def test_kmeans_start_settles_where_lloyd_does(draw, device):
    """On two clear clusters every start ends in the same split."""
    random = np.random.default_rng(1)
    x = np.concatenate([random.normal(0.2, 0.02, 60), random.normal(0.8, 0.02, 40)])
    drawn = torch.tensor([draw], dtype=torch.float64)
    plain = mixture_em(points(x, device), EMOptions())
    fit = mixture_em(points(x, device, draw=drawn), EMOptions(init="kmeans++"))
    assert torch.allclose(fit.fitted, plain.fitted, rtol=0, atol=1e-12)
    assert abs(fit.fitted[0, 0].item() - 0.6) < 1e-9


def many_groups(sizes, device, start=None):
    values = [torch.from_numpy(np.sort(losses(n, seed=n))) if n > 1 else torch.full((n,), 0.3) for n in sizes]
    offset = torch.tensor([0, *np.cumsum(sizes)])
    value = torch.cat([v.double() for v in values])
    count = torch.randint(0, 4, (len(value),))
    limits = torch.tensor([[0.0, 1.0]], dtype=torch.float64).repeat(len(sizes), 1)
    made = EMInput(value, count, offset, limits, start, torch.rand(len(sizes), 2, dtype=torch.float64))
    return EMInput(*(None if x is None else x.to(device) for x in made))


@pytest.mark.parametrize("family", ["gaussian", "beta_moments", "beta_likelihood"])
def test_groups_are_fits_of_their_own(family, device):
    sizes = (40, 0, 1, 130, 3)
    start = None if family == "gaussian" else BETA_START.repeat(len(sizes), 1)
    together = many_groups(sizes, device, start)
    options = EMOptions(family, max_iter=5 if family == "gaussian" else 2)
    fits = mixture_em(together, options)
    for g, (first, size) in enumerate(zip(together.offset.tolist(), sizes, strict=False)):
        alone = EMInput(
            together.value[first : first + size], together.counts[first : first + size],
            torch.tensor([0, size], device=device), together.limits[:1],
            None if start is None else BETA_START.to(device), None,
        )  # fmt: skip
        for a, b in zip(fits, mixture_em(alone, options), strict=True):
            assert same_bits(a[g : g + 1], b)
    assert not any(x.isnan().any() for x in fits)


@pytest.mark.parametrize("init", INITS)
def test_cut_is_where_the_start_splits(init, device):
    """Weights of the start are the shares of the values on either side; a given start has no cut, nor has no value."""
    together = many_groups((50, 0, 3, 80), device)
    limits = torch.tensor([[-1.0, 3.0]], dtype=torch.float64, device=device).repeat(4, 1)
    fit = mixture_em(together._replace(limits=limits, value=4 * together.value - 1), EMOptions(init=init, max_iter=0))
    assert fit.cut.isfinite().all()
    for g, first, last in ((0, 0, 50), (3, 53, 133)):
        value, counts = 4 * together.value[first:last] - 1, together.counts[first:last]
        below = counts[value <= fit.cut[g]].sum() / counts.sum()
        assert 0 < below < 1
        assert abs(below.item() - fit.fitted[g, 0].item()) <= 1e-6
        again = mixture_em(together._replace(start=fit.fitted[:, :6].contiguous()), EMOptions(init=init, max_iter=0))
        assert abs(again.cut[g].item() - together.value[first:last][counts > 0].max().item()) <= 1e-12


def test_exp_and_log_of_the_cpu():
    from fastlnl.ops.mixture_em.numba_kernel import exp_of_negative, log_up_to_two

    random = np.random.default_rng(0)
    for x in (0.0, -0.0, *-random.exponential(20, 2000), *-random.exponential(1e-3, 500)):
        assert abs(exp_of_negative(x) / np.exp(x) - 1) <= 5e-16
    assert [exp_of_negative(x) for x in (-701.0, -1e12, -np.inf)] == [0, 0, 0]
    for x in (1.0, 2.0, *random.uniform(1, 2, 2000)):
        assert abs(log_up_to_two(x) - np.log(x)) <= 2.5e-16


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_no_bit(threads):
    from fastlnl.ops.mixture_em.numba_kernel import SERIAL_BELOW

    together = many_groups([500] * 80, "cpu")
    assert len(together.value) > SERIAL_BELOW
    torch.set_num_threads(threads)
    with use_backend("numba"):
        fits = mixture_em(together, EMOptions())
    with use_backend("reference"):
        expected = mixture_em(together, EMOptions())
    assert torch.allclose(fits.fitted, expected.fitted, rtol=0, atol=1e-10)
    assert torch.equal(fits.info, expected.info)


DEGENERATE = {
    "empty": ([], [], MixtureStatus.EMPTY),
    "counted zero": ([0.1, 0.7], [0, 0], MixtureStatus.EMPTY),
    "one": ([0.3], [1], MixtureStatus.TOO_FEW | MixtureStatus.ALL_EQUAL),
    "three": ([0.1, 0.2, 0.9], [1, 1, 1], MixtureStatus.TOO_FEW),
    "all equal": ([0.25], [50], MixtureStatus.ALL_EQUAL),
    "all at zero": ([0.0, 1.0], [50, 0], MixtureStatus.ALL_EQUAL),
    "two values": ([0.0, 1.0], [30, 20], MixtureStatus.TWO_VALUES),
    "hardly any": ([0.0, 0.1, 1.0], [5000, 5000, 2], MixtureStatus.COLLAPSED),
}


@pytest.mark.parametrize("family", ["gaussian", "beta_moments", "beta_likelihood"])
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_input(name, init, family, device):
    value, count, status = DEGENERATE[name]
    if family != "gaussian" and (init != "lloyd" or name == "hardly any"):
        pytest.skip("Beta mixtures have one start")
    start = None if family == "gaussian" else BETA_START
    drawn = torch.tensor([[0.3, 0.6]], dtype=torch.float64)
    made = points(value, device, torch.tensor(count, dtype=torch.int64), start=start, draw=drawn)
    fit = mixture_em(made, EMOptions(family, init, reg_covar=0.0, max_iter=10 if family == "gaussian" else 2))
    assert fit.fitted.isfinite().all()
    assert not fit.odds.isnan().any()
    if name == "hardly any" and init != "lloyd":
        return  # these starts cut between the many, so both components are there
    assert fit.info[0, 2] == int(status)
    if status & ~MixtureStatus.TWO_VALUES:
        assert fit.odds[0].tolist() == [1000.0] + [0.0] * 7  # all clean
    if status & (MixtureStatus.EMPTY | MixtureStatus.TOO_FEW | MixtureStatus.ALL_EQUAL):
        assert fit.fitted[0, :2].tolist() == [1.0, 0.0]
        assert fit.info[0, :2].tolist() == [0, 0]
    if name == "two values" and family == "gaussian":
        assert np.abs(fit.fitted[0, :4].cpu().numpy() - [0.6, 0.4, 0, 1]).max() <= 1e-9


def test_a_group_without_a_start_takes_the_split(device):
    together = many_groups((60, 60), device)
    start = torch.full((2, 6), torch.nan, dtype=torch.float64)
    start[1] = torch.tensor([0.3, 0.7, 0.2, 0.6, 0.01, 0.02])
    fits = mixture_em(together._replace(start=start.to(device)), EMOptions(max_iter=3))
    split = mixture_em(together, EMOptions(max_iter=3))
    assert same_bits(fits.fitted[0], split.fitted[0])
    assert not same_bits(fits.fitted[1], split.fitted[1])


@settings(max_examples=40, deadline=None)
@example([(0.0, 39), (0.0, 40), (0.0, 40), (1e-12, 34)], "lloyd")
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 50)), max_size=12), st.sampled_from(INITS))
def test_any_points(pairs, init):
    """numba and reference agree, nothing is NaN, weights sum to one, no component is higher than the second."""
    value, count = [p[0] for p in pairs], torch.tensor([p[1] for p in pairs], dtype=torch.int64)
    made = points(value, "cpu", count, draw=torch.tensor([[0.41, 0.67]], dtype=torch.float64))
    with use_backend("reference"):
        expected = mixture_em(made, EMOptions(init=init, tol=0.0, max_iter=4))
    with use_backend("numba"):
        fit = mixture_em(made, EMOptions(init=init, tol=0.0, max_iter=4))
    assert fit.fitted.isfinite().all()
    assert torch.allclose(fit.fitted, expected.fitted, rtol=1e-6, atol=1e-7)
    assert torch.equal(fit.info[:, :2], expected.info[:, :2])
    assert abs(fit.fitted[0, :2].sum() - 1) < 1e-12
    m0, m1, v0, v1 = fit.fitted[0, 2:6].tolist()
    assert m0 - m1 <= 1e-3 * max(v0, v1) ** 0.5


@pytest.mark.parametrize(
    ("change", "options", "text"),
    [
        ({"value": torch.zeros(3)}, EMOptions(), r"value is \(3,\) float32; expected contiguous \(3,\)"),
        ({"counts": torch.zeros(2).long()}, EMOptions(), r"counts is \(2,\) int64; expected contiguous \(3,\)"),
        ({"limits": torch.zeros(2, 2).double()}, EMOptions(), r"limits is \(2, 2\) float64; expected contiguous"),
        ({}, EMOptions("beta_moments"), "start is None"),
        ({}, EMOptions(init="kmeans++"), "draw is None"),
        ({}, EMOptions(max_iter=-1), "max_iter at least 0"),
    ],
)  # fmt: skip
def test_refused(change, options, text):
    with pytest.raises(ShapeError, match=text):
        mixture_em(points([0.1, 0.2, 0.3], "cpu")._replace(**change), options)
