"""The splits of GaussianMixture1D beside scikit-learn's, and binned fits beside exact ones at the size of ImageNet."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture
from torch.nn import functional as F

from fastlnl.backend import use_backend
from fastlnl.data import load_dataset
from fastlnl.mixture import GaussianMixture1D

DATA = Path(os.environ.get("FASTLNL_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
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


def from_fashion(epochs=2, noise=0.4):
    """The same of a small network on Fashion-MNIST."""
    if not (DATA / "fashion_mnist").is_dir():
        pytest.skip(f"{DATA / 'fashion_mnist'} is not there; set FASTLNL_DATA to the data folder")
    torch.manual_seed(0)
    data = load_dataset("fashion_mnist", DATA)
    x, y = data.train_images.flatten(1).float() / 255, data.train_label
    y = torch.where(torch.rand(len(y)) < noise, torch.randint(0, 10, y.shape), y)
    network = torch.nn.Sequential(torch.nn.Linear(784, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(256):
            optimizer.zero_grad()
            F.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        return F.cross_entropy(network(x), y, reduction="none")


def scikit_learn(x, seed, **given):
    """Which samples are clean, as DivideMix asks."""
    z = ((x - x.min()) / (x.max() - x.min()))[:, None].numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixture = GaussianMixture(2, random_state=seed, **{**SETTINGS, **given}).fit(z)
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


def compare(x, init):
    """Largest difference of the posteriors of a fit to bins and one to values, decisions that differ, iterations."""
    fits = [GaussianMixture1D(bins=bins, init=init, **SETTINGS).fit(x) for bins in (None, 4096)]
    p, q = (fit.clean_prob(x) for fit in fits)
    return float((p - q).abs().max()), int(((p > 0.5) != (q > 0.5)).sum()), [int(fit.n_iter_) for fit in fits]


@pytest.mark.parametrize("noise", [0.2, 0.5, 0.8])
def test_binned_equals_exact_at_the_size_of_imagenet(noise):
    """Each from its own start: 2-means on the values, and on bins that are finer around the cut."""
    with use_backend("numba"):
        error, flips, steps = compare(synthetic(1_280_000, noise, seed=1), "lloyd")
    assert error <= 2e-5
    assert flips == 0
    assert steps[0] == steps[1]


@pytest.mark.parametrize("init", ["lloyd", "quantile", "kmeans++"])
@pytest.mark.parametrize("noise", [0.2, 0.4, 0.6, 0.8])
def test_binned_equals_exact(noise, init):
    """Fewer values, so that one in the wrong component shows."""
    with use_backend("numba"):
        for seed, n in enumerate((1_000, 5_000, 20_000)):
            error, flips, steps = compare(synthetic(n, noise, seed), init)
            assert error <= 2e-5
            assert flips == 0
            assert steps[0] == steps[1]


def test_losses_of_a_network_split_as_with_scikit_learn():
    """60,000 losses of Fashion-MNIST with 40 % symmetric noise: from the same start, and each from its own."""
    x = from_fashion()
    with use_backend("numba"):
        start, mixture = GaussianMixture1D(max_iter=0).fit(x), GaussianMixture1D(**SETTINGS).fit(x)
        ours, exact = ((fit.clean_prob(x) > 0.5).numpy() for fit in (mixture, GaussianMixture1D(bins=None).fit(x)))
    assert (ours == exact).all()
    same = scikit_learn(
        x, 0, weights_init=start.weights_.numpy(), means_init=start.means_.numpy()[:, None],
        precisions_init=1 / start.variances_.numpy()[:, None, None],
    )  # fmt: skip
    assert (ours != same).sum() <= 1  # theirs maps the losses to [0, 1] in float32
    for seed in range(5):
        assert (ours == scikit_learn(x, seed)).mean() >= 0.999


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
