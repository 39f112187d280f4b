"""The splits of GaussianMixture1D beside scikit-learn's, and binned fits beside exact ones at the size of ImageNet."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture
from torch.nn import functional as F

from fastlnl.backend import use_backend
from fastlnl.mixture import GaussianMixture1D
from fastlnl.ops.mixture_em import EMInput, EMOptions, mixture_em
from fastlnl.ops.mixture_posterior import mixture_posterior

SETTINGS = {"reg_covar": 5e-4, "tol": 1e-2, "max_iter": 10}
SEEDS = 10


def synthetic(n, noise, seed=0):
    """Gamma losses of clean samples, normal losses of mislabelled ones."""
    random = np.random.default_rng(seed)
    noisy = int(n * noise)
    losses = np.concatenate([random.gamma(0.6, 0.4, n - noisy), np.abs(random.normal(3.5, 1.0, noisy))])
    return torch.from_numpy(random.permutation(losses)).float()


def from_training(epochs=6, noise=0.4):
    """Cross-entropy of every sample after some epochs of a small network on digits with symmetric noise."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16.0).float(), torch.tensor(digits.target)
    y = torch.where(torch.rand(len(y)) < noise, torch.randint(0, 10, y.shape), y)
    network = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        return F.cross_entropy(network(x), y, reduction="none")


def scikit_learn(x, seed):
    """Which samples are clean, as DivideMix asks."""
    z = ((x - x.min()) / (x.max() - x.min()))[:, None].numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixture = GaussianMixture(2, random_state=seed, **SETTINGS).fit(z)
    return mixture.predict_proba(z)[:, mixture.means_.argmin()] > 0.5


PROBLEMS = {
    "20 %": lambda: synthetic(20_000, 0.2),
    "50 %": lambda: synthetic(20_000, 0.5),
    "80 %": lambda: synthetic(20_000, 0.8),
    "training": from_training,
}


@pytest.mark.parametrize("bins", [4096, None])
@pytest.mark.parametrize("name", PROBLEMS)
def test_splits_differ_from_scikit_learn_as_its_seeds_do(name, bins):
    x = PROBLEMS[name]()
    with use_backend("numba"):
        ours = (GaussianMixture1D(bins=bins, **SETTINGS).fit(x).clean_prob(x) > 0.5).numpy()
    theirs = [scikit_learn(x, seed) for seed in range(SEEDS)]
    spread = max((one != other).sum() for one in theirs for other in theirs)
    assert max((ours != one).sum() for one in theirs) <= spread + 1  # spread is 0 where all seeds agree


@pytest.mark.parametrize("noise", [0.2, 0.5, 0.8])
def test_binned_equals_exact_at_the_size_of_imagenet(noise):
    x = synthetic(1_280_000, noise, seed=1)
    with use_backend("numba"):
        exact, binned = (GaussianMixture1D(bins=bins, **SETTINGS).fit(x) for bins in (None, 4096))
        p, q = exact.clean_prob(x), binned.clean_prob(x)
    assert (p - q).abs().max() <= 2e-5
    assert torch.equal(p > 0.5, q > 0.5)
    assert exact.n_iter_ == binned.n_iter_


def test_order_and_threads_change_no_bit():
    x = synthetic(400_000, 0.4)
    found = []
    for threads, order in ((1, slice(None)), (3, slice(None)), (2, torch.randperm(len(x)))):
        torch.set_num_threads(threads)
        with use_backend("numba"):
            mixture = GaussianMixture1D().fit(x[order])
            found.append((mixture.means_, mixture.variances_, mixture.weights_, mixture.clean_prob(x)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("noise", [0.2, 0.8])
def test_a_start_on_bins_moves_few_of_many(noise):
    """2-means on the values cuts inside a bin; a fit that stops after three iterations still shows it."""
    x = synthetic(1_280_000, noise, seed=1)
    value = x.double().sort().values
    limits = torch.stack((value[0], value[-1]))[None]
    points = EMInput(value, torch.ones_like(value).long(), torch.tensor([0, len(value)]), limits, None, None)
    with use_backend("numba"):
        exact = mixture_posterior(x, mixture_em(points, EMOptions()).odds)
        ours = GaussianMixture1D().fit(x).clean_prob(x)
    assert (exact - ours).abs().max() <= 5e-4
    assert ((exact > 0.5) != (ours > 0.5)).sum() <= 10
