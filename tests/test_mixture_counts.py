"""BetaMixture1D on integer counts: IDO's golden table, groups without a mixture, warm fits."""

import numpy as np
import pytest
import torch
from scipy import special, stats

from fastlnl.errors import ShapeError
from fastlnl.mixture import BetaMixture1D, MixtureStatus

pytestmark = pytest.mark.usefixtures("poison")
GOLDEN = torch.repeat_interleave(torch.arange(6), torch.tensor([9963, 9469, 6097, 4579, 5578, 14314]))


def transcription(count, steps, start=(0.5, 0.5, 1.0, 2.0, 2.0, 1.0), f=1e-6):
    """IDO's mixture over the counts one by one: weights, alphas, betas."""
    w, a, b = (np.array(start[i : i + 2]) for i in (0, 2, 4))
    low, high = count.min(), count.max()
    x = (count - low) / (high - low) * (1 - 2 * f) + f
    rest = (high - count) / (high - low) * (1 - 2 * f) + f
    for _ in range(steps):
        pdf = [np.exp((a[k] - 1) * np.log(x) + (b[k] - 1) * np.log(rest) - special.betaln(a[k], b[k])) for k in (0, 1)]
        likelihood = np.maximum(np.stack([w[k] * pdf[k] for k in (0, 1)]), f)
        r = likelihood / (likelihood.sum(0) + f)
        mean = (r * x).sum(1) / (r.sum(1) + f)
        variance = np.maximum((r * (x - mean[:, None]) ** 2).sum(1) / (r.sum(1) + f), f)
        a = mean * (mean * (1 - mean) / variance - 1)
        b = np.maximum(a * (1 - mean) / mean, f)
        a = np.maximum(a, f)
        b[0], a[1] = 1.1 if b[0] < 1.02 else b[0], 1.1 if a[1] < 1.02 else a[1]
        w = r.sum(1) / r.sum()
    return w, a, b


def tabulated(w, a, b, low, high, size, f=1e-6):
    k = np.arange(size)
    x = np.clip((k - low) / (high - low), 0, 1) * (1 - 2 * f) + f
    rest = np.clip((high - k) / (high - low), 0, 1) * (1 - 2 * f) + f
    pdf = [np.exp((a[i] - 1) * np.log(x) + (b[i] - 1) * np.log(rest) - special.betaln(a[i], b[i])) for i in (0, 1)]
    q = [w[i] * pdf[i] / (w[0] * pdf[0] + w[1] * pdf[1] + f) for i in (0, 1)]
    tail = [stats.beta.cdf(x, a[i], b[i]) for i in (0, 1)]
    table = np.stack([q[0], q[0] * tail[0] + (1 - q[1]) * (1 - tail[1])], axis=1)
    return np.where(k[:, None] > high, 0, table)


def test_golden_table(device):
    mixture = BetaMixture1D().fit_counts(GOLDEN.to(device), max_count=9)
    exact = {
        "alpha_": (0.53130848, 1.20251926),
        "beta_": (1.43019120, 0.12977893),
        "weights_": (0.61017727, 0.38982273),
    }
    for name, value in exact.items():
        assert torch.allclose(getattr(mixture, name).cpu(), torch.tensor(value).double(), rtol=0, atol=1e-7), name
    table = mixture.count_table().cpu()
    assert table.shape == (10, 2)
    assert table.dtype == torch.float32
    expected = torch.tensor(
        [
            (0.999987871, 1.000799944), (0.944649190, 1.414927420), (0.880563633, 1.472923475),
            (0.768233077, 1.357356257), (0.525950833, 0.939787971), (1.22e-7, 1.43e-7),
        ]
    )  # fmt: skip
    assert torch.allclose(table[:6], expected, rtol=0, atol=2e-7)
    assert torch.allclose(table[5], expected[5], rtol=5e-3)
    assert (table[6:] == 0).all()
    tail = mixture.cdf(torch.tensor([3.0]).to(device))[0].tolist()
    assert np.abs(np.array(tail) - (0.856858684, 0.090006558)).max() <= 1e-8


def test_classes_are_fits_of_their_own(device):
    random = np.random.default_rng(0)
    group = torch.from_numpy(random.integers(0, 3, 900))
    count = torch.from_numpy(
        np.where(random.random(900) < 0.6, random.binomial(5, 0.1, 900), random.binomial(5, 0.9, 900))
    )
    mixture = BetaMixture1D(num_groups=3, max_iter=4).fit_counts(count.to(device), group.to(device), max_count=7)
    table = mixture.count_table().cpu()
    assert table.shape == (3, 8, 2)
    for g in range(3):
        own = count[group == g].numpy()
        w, a, b = transcription(own, 4)
        for ours, exact in ((mixture.weights_, w), (mixture.alpha_, a), (mixture.beta_, b)):
            assert np.abs(ours[g].cpu().numpy() - exact).max() <= 1e-9
        assert np.abs(table[g].numpy() - tabulated(w, a, b, own.min(), own.max(), 8)).max() <= 2e-7


def test_groups_without_a_mixture_use_the_common_table(device):
    """Class 0 has one count only, class 1 two samples, class 2 is empty, class 3 has a mixture."""
    count = torch.tensor([2] * 8 + [0, 5] + [0, 0, 1, 1, 4, 5, 5, 3])
    group = torch.tensor([0] * 8 + [1, 1] + [3] * 8)
    mixture = BetaMixture1D(num_groups=4, max_iter=3).fit_counts(count.to(device), group.to(device), max_count=6)
    table = mixture.count_table().cpu()
    common = BetaMixture1D(max_iter=3).fit_counts(count.to(device), max_count=6).count_table().cpu()
    for g in range(3):
        assert torch.equal(table[g], common)
    assert not torch.equal(table[3], common)
    flags = [S.ALL_EQUAL, S.TOO_FEW, S.EMPTY, 0]
    assert mixture.status_.tolist() == [int(flag) for flag in flags]


S = MixtureStatus


@pytest.mark.parametrize("num_groups", [None, 2])
@pytest.mark.parametrize("values", [[], [3], [3] * 50])
def test_nothing_to_split_anywhere(values, num_groups, device):
    count = torch.tensor(values, dtype=torch.int64).to(device)
    group = None if num_groups is None else torch.zeros_like(count)
    mixture = BetaMixture1D(num_groups=num_groups).fit_counts(count, group, max_count=5)
    assert (mixture.count_table() == 1).all()
    assert (mixture.status_ > 0).all()


def test_warm_fits_go_on(device):
    count = GOLDEN[::50].to(device)
    whole = BetaMixture1D(max_iter=6).fit_counts(count, max_count=8)
    parts = BetaMixture1D(max_iter=4, warm_start=True).fit_counts(count, max_count=8)
    parts.max_iter = 2
    parts.fit_counts(count, max_count=8)
    assert torch.equal(whole.alpha_, parts.alpha_)
    assert torch.equal(whole.count_table(), parts.count_table())


def test_counts_out_of_range_are_left_out(device):
    count = torch.tensor([0, 1, 2, 3, 4, 5, -1, 6, 99] * 3).to(device)
    inside = count[(count >= 0) & (count <= 5)]
    one, other = (BetaMixture1D(max_iter=2).fit_counts(c, max_count=5) for c in (count, inside))
    assert torch.equal(one.alpha_, other.alpha_)
    assert torch.equal(one.count_table(), other.count_table())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_any_integer_type(dtype, device):
    count = GOLDEN[::50]
    one, other = (BetaMixture1D(max_iter=2).fit_counts(c.to(device), max_count=5) for c in (count, count.to(dtype)))
    assert torch.equal(one.alpha_, other.alpha_)


def test_refused():
    with pytest.raises(ShapeError, match=r"count is \(3,\) float32, max_count 5; expected \(N,\) integers"):
        BetaMixture1D().fit_counts(torch.zeros(3), max_count=5)
    with pytest.raises(RuntimeError, match="count_table is about counts; call fit_counts first"):
        BetaMixture1D().fit(torch.rand(9)).count_table()
