"""GaussianMixture1D and BetaMixture1D on values: what callers are promised, on every backend."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlnl.backend import use_backend
from fastlnl.errors import ShapeError
from fastlnl.mixture import BetaMixture1D, GaussianMixture1D, MixtureStatus

pytestmark = pytest.mark.usefixtures("poison")
KINDS = [GaussianMixture1D, BetaMixture1D]
SMALL = {"bins": 256}  # quick under Triton's interpreter


def same_bits(x, y):
    return x.dtype == y.dtype and torch.equal(
        *(t.cpu().flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8) for t in (x, y))
    )


def losses(n, noise=0.4, seed=0):
    """Losses, the clean ones first."""
    random = np.random.default_rng(seed)
    noisy = int(n * noise)
    x = np.concatenate([random.gamma(0.5, 0.4, n - noisy), np.abs(random.normal(4, 1, noisy))])
    return torch.from_numpy(x).float()


def fitted(mixture):
    names = ("weights_", "means_", "variances_", "alpha_", "beta_", "n_iter_", "converged_", "status_", "limits_")
    return {name: getattr(mixture, name) for name in names if hasattr(mixture, name)}


@pytest.mark.parametrize("normalise", ["minmax", "p5p95", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_small_losses_are_clean(kind, normalise, device):
    x = losses(1500)
    x = x / 8 if normalise == "none" else x
    mixture = kind(normalise=normalise, **SMALL)
    assert mixture.fit(x.to(device)) is mixture
    p, q, both = (f(x.to(device)).cpu() for f in (mixture.clean_prob, mixture.log_odds, mixture.predict_proba))
    assert ((p[:900] > 0.5).float().mean(), (p[900:] > 0.5).float().mean()) > (0.9, 0.0)
    assert (p[900:] > 0.5).float().mean() < 0.1
    assert p.dtype == q.dtype == both.dtype == torch.float32
    assert both.shape == (1500, 2)
    assert torch.allclose(both[:, 0], p, rtol=0, atol=2e-7)
    assert torch.allclose(both.sum(1), torch.ones(1500), rtol=0, atol=2e-7)
    assert torch.allclose(q.sigmoid(), p, rtol=0, atol=2e-7)
    assert mixture.status_ == 0
    assert mixture.weights_.shape == (2,)
    assert mixture.n_iter_.shape == mixture.status_.shape == mixture.converged_.shape == ()
    low, high = mixture.limits_.tolist()
    expected = {"minmax": (0.0, 1.0), "p5p95": (0.05, 0.95)}
    if normalise == "none":
        assert (low, high) == (0.0, 1.0)
    else:
        exact = np.quantile(x.double().numpy(), expected[normalise])
        assert np.abs(np.array([low, high]) - exact).max() < 1e-12


@pytest.mark.parametrize("normalise", ["minmax", "p5p95", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_bins_against_values(kind, normalise, device):
    x = (losses(1200) / 8).to(device)
    exact, binned = kind(bins=None, normalise=normalise).fit(x), kind(normalise=normalise).fit(x)
    # log x near 0 tells values apart that are in one bin
    limit = 2e-4 if kind is BetaMixture1D else 2e-5
    assert (exact.clean_prob(x) - binned.clean_prob(x)).abs().max() <= limit
    assert exact.n_iter_ == binned.n_iter_
    for name, value in fitted(exact).items():
        assert torch.allclose(value.double(), fitted(binned)[name].double(), rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("bins", [256, None])
@pytest.mark.parametrize("kind", KINDS)
def test_order_changes_no_bit(kind, bins, device):
    x, group = losses(700).to(device), torch.randint(0, 3, (700,)).to(device)
    order = torch.randperm(700).to(device)
    one, other = (kind(bins=bins, num_groups=3, max_iter=3).fit(x[o], group[o]) for o in (slice(None), order))
    for name, value in fitted(one).items():
        assert same_bits(value, fitted(other)[name]), name


@pytest.mark.parametrize("normalise", ["minmax", "p5p95", "none"])
@pytest.mark.parametrize("bins", [256, None])
def test_groups_are_mixtures_of_their_own(bins, normalise, device):
    x, group = losses(900), torch.randint(-1, 5, (900,))
    x[3], group[3], group[group == 2] = torch.nan, 1, 1  # nobody is left in 2, ids -1 and 4 are nobody's
    options = {"bins": bins, "normalise": normalise}
    together = GaussianMixture1D(num_groups=4, **options).fit(x.to(device), group.to(device))
    p = together.clean_prob(x.to(device), group.to(device)).cpu()
    assert together.means_.shape == (4, 2)
    for g in range(4):
        own = x[group == g].to(device)
        alone = GaussianMixture1D(**options).fit(own)
        for name, value in fitted(together).items():
            assert same_bits(value[g], fitted(alone)[name]), name
        assert torch.allclose(p[group == g], alone.clean_prob(own).cpu(), rtol=0, atol=3e-7)
    assert together.status_.tolist() == [0, int(MixtureStatus.NON_FINITE), int(MixtureStatus.EMPTY), 0]
    assert (p[(group < 0) | (group > 3)] == 0).all()


NAN, INF = float("nan"), float("inf")
S = MixtureStatus
DEGENERATE = {
    "no value": ([], S.EMPTY),
    "one value": ([0.7], S.TOO_FEW | S.ALL_EQUAL),
    "three values": ([0.1, 0.2, 0.9], S.TOO_FEW),
    "all equal": ([1.5] * 20, S.ALL_EQUAL),
    "only NaN": ([NAN] * 5, S.EMPTY | S.NON_FINITE),
    "NaN and equal": ([NAN, INF, 2.0, 2.0, 2.0, 2.0], S.ALL_EQUAL | S.NON_FINITE),
    "two values": ([0.5] * 12 + [2.0] * 8, S.TWO_VALUES),
    "two values and inf": ([0.5] * 12 + [2.0] * 8 + [INF, -INF], S.TWO_VALUES | S.NON_FINITE),
    "one far away": ([0.1, 1.0, 2.0, 3.0] * 500 + [90.0], S.COLLAPSED),
}


@pytest.mark.parametrize("bins", [256, None])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_input(name, kind, bins, device):
    values, status = DEGENERATE[name]
    x = torch.tensor(values, dtype=torch.float32).to(device)
    mixture = kind(bins=bins, max_iter=3).fit(x)
    if name == "one far away" and kind is BetaMixture1D:
        status = mixture.status_.item()  # moments may keep both components
    assert mixture.status_.item() == int(status)
    assert all(not value.double().isnan().any() for value in fitted(mixture).values())
    p, q, finite = mixture.clean_prob(x), mixture.log_odds(x), x.isfinite()
    assert (p[~finite] == 0).all()
    assert (q[~finite] == -1000).all()
    assert not q.isnan().any()
    if name.startswith("two values"):
        assert ((p > 0.5) == (x == 0.5)).all()
    elif kind is GaussianMixture1D or name != "one far away":
        assert (p[finite] == 1).all()
        assert (q[finite] == 1000).all()


def test_warm_start_goes_on_where_the_last_fit_ended(device):
    x = losses(800).to(device)
    options = {"bins": 256, "tol": 0.0}
    whole = GaussianMixture1D(max_iter=7, **options).fit(x)
    parts = GaussianMixture1D(max_iter=4, warm_start=True, **options).fit(x)
    parts.max_iter = 3
    parts.fit(x)
    assert parts.n_iter_ == 3
    assert same_bits(whole.means_, parts.means_)
    assert same_bits(whole.variances_, parts.variances_)
    cold = GaussianMixture1D(max_iter=3, **options).fit(x).fit(x)
    assert not same_bits(whole.means_, cold.means_)


@pytest.mark.parametrize("kind", KINDS)
def test_warm_start_after_a_useless_fit_is_a_cold_start(kind, device):
    x = losses(600).to(device)
    mixture = kind(bins=256, max_iter=3, warm_start=True).fit(torch.full_like(x, 3.0)).fit(x)
    fresh = kind(bins=256, max_iter=3).fit(x)
    for name, value in fitted(mixture).items():
        assert same_bits(value, fitted(fresh)[name]), name


def test_seeds_of_kmeans(device):
    x = losses(800).to(device)
    fits = [GaussianMixture1D(init="kmeans++", seed=seed, **SMALL).fit(x).means_ for seed in (0, 0, 5)]
    assert same_bits(fits[0], fits[1])
    assert torch.allclose(fits[0], fits[2], rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_and_strides(dtype, device):
    x = losses(300).to(dtype).to(device)
    expected = GaussianMixture1D(**SMALL).fit(x.float()).clean_prob(x.float())
    for view in (x, x.repeat_interleave(2)[::2], x.clone().requires_grad_()):
        assert same_bits(GaussianMixture1D(**SMALL).fit(view).clean_prob(view), expected)


def test_beta_by_likelihood_and_its_distribution(device):
    random = np.random.default_rng(0)
    x = torch.from_numpy(np.concatenate([random.beta(2, 20, 600), random.beta(9, 3, 400)])).float().to(device)
    mixture = BetaMixture1D(bins=256, method="likelihood", normalise="none", max_iter=8).fit(x)
    assert torch.allclose(mixture.weights_.cpu(), torch.tensor([0.6, 0.4]).double(), atol=0.02)
    assert torch.allclose(mixture.alpha_.cpu(), torch.tensor([2.0, 9.0]).double(), rtol=0.25)
    assert torch.allclose(mixture.beta_.cpu(), torch.tensor([20.0, 3.0]).double(), rtol=0.25)
    from scipy.stats import beta

    at = np.array([0.0, 0.05, 0.5, 1.0])
    expected = np.stack([beta.cdf(at, mixture.alpha_[k].item(), mixture.beta_[k].item()) for k in range(2)], axis=1)
    assert np.abs(mixture.cdf(torch.from_numpy(at).to(device)).cpu().numpy() - expected).max() <= 2e-5


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=True), max_size=30), st.sampled_from(KINDS), st.sampled_from([256, None]),
    st.sampled_from(["minmax", "p5p95", "none"]),
)  # fmt: skip
def test_never_nan(values, kind, bins, normalise):
    x = torch.tensor(values, dtype=torch.float32)
    with use_backend("numba"):
        mixture = kind(bins=bins, normalise=normalise).fit(x)
        answers = [mixture.clean_prob(x), mixture.log_odds(x), mixture.predict_proba(x), *fitted(mixture).values()]
    assert not any(answer.double().isnan().any() for answer in answers)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"init": "warm"}, "init is 'warm'; expected one of lloyd, quantile"),
        ({"normalise": "log"}, "normalise is 'log'; expected one of minmax, p5p95, none"),
        ({"num_groups": 0}, "num_groups is 0"),
    ],
)
def test_refused_options(options, text):
    with pytest.raises(ValueError, match=text):
        GaussianMixture1D(**options)


def test_refused_values():
    with pytest.raises(ShapeError, match=r"x is \(3,\) int64; expected \(N,\) of a floating type"):
        GaussianMixture1D().fit(torch.zeros(3).long())
    with pytest.raises(ShapeError, match=r"groups is given but num_groups is None"):
        GaussianMixture1D().fit(torch.zeros(3), torch.zeros(3).long())
    with pytest.raises(ShapeError, match=r"groups is None but num_groups is 2"):
        GaussianMixture1D(num_groups=2).fit(torch.zeros(3))
    with pytest.raises(ShapeError, match=r"groups is \(2,\) int64; expected \(3,\) of an integer type"):
        GaussianMixture1D(num_groups=2).fit(torch.zeros(3), torch.zeros(2).long())
    with pytest.raises(RuntimeError, match="not fitted yet; call fit first"):
        GaussianMixture1D().clean_prob(torch.zeros(3))
    with pytest.raises(ValueError, match="method is 'mean'"):
        BetaMixture1D(method="mean")


def test_the_largest_losses_are_not_clean_again(device):
    """A Beta posterior never rises with the value beyond its lowest point."""
    x = losses(1000).to(device)
    mixture = BetaMixture1D(normalise="p5p95", bins=256).fit(x)
    at = torch.linspace(0, float(x.max()) + 1, 400)
    p = mixture.clean_prob(at.to(device))
    assert p[-1] < 0.2
    assert (p[200:].diff() <= 0).all()
