"""Fitting a Gaussian mixture to losses and asking for all posteriors, against scikit-learn."""

import warnings
from typing import Any, NamedTuple

import torch
from contests import Contest, Size, WrongAnswer, calling
from torch import Tensor

from fastlnl.mixture import GaussianMixture1D

NOISE = 0.4
SETTINGS: dict[str, Any] = {"reg_covar": 5e-4, "tol": 1e-2, "max_iter": 10}  # of DivideMix
SAME_SIDE = 0.999  # share of samples; a few that are nearly undecided may fall to either side


class Values(NamedTuple):
    loss: Tensor  # (N,)
    groups: Tensor | None  # (N,)
    num_groups: int | None


def losses(size: Size, device: torch.device | str) -> Values:
    """Of clean samples from a gamma distribution, of noisy ones (40 %) from a normal one, in random order."""
    samples = size[0]
    random = torch.Generator().manual_seed(0)
    normal = torch.randn(samples, 2, generator=random)
    clean = 0.2 * normal[:, 0] ** 2  # a gamma distribution of shape 1/2 and scale 0.4
    noisy = torch.rand(samples, generator=random) < NOISE
    loss = torch.where(noisy, (4 + normal[:, 1]).abs(), clean).to(device)
    if len(size) == 1:
        return Values(loss, None, None)
    return Values(loss, torch.randint(size[1], (samples,), generator=random).to(device), size[1])


def fastlnl_clean_prob(given: Values) -> Tensor:
    loss, groups, num_groups = given
    return GaussianMixture1D(num_groups=num_groups, **SETTINGS).fit(loss, groups).clean_prob(loss, groups)


def sklearn_clean_prob(given: Values) -> Tensor:
    """As DivideMix writes it: losses go to the CPU and to [0, 1], posteriors come back; a loop over the groups."""
    loss, groups, num_groups = given
    if groups is None or num_groups is None:
        return posterior(loss)
    out = torch.empty_like(loss)
    for group in range(num_groups):
        own = groups == group
        out[own] = posterior(loss[own])
    return out


def posterior(loss: Tensor) -> Tensor:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    values = loss.cpu().numpy()[:, None]
    values = (values - values.min()) / (values.max() - values.min())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ten iterations need not be enough
        mixture = GaussianMixture(2, random_state=0, **SETTINGS).fit(values)
    return torch.from_numpy(mixture.predict_proba(values)[:, mixture.means_.argmin()]).to(loss)


def same_side(ours: Tensor, theirs: Tensor) -> str:
    """EM that stops after few iterations depends on its start, which the two choose differently."""
    same = float(((ours > 0.5) == (theirs > 0.5)).double().mean())
    if not same >= SAME_SIDE:
        raise WrongAnswer(f"only {100 * same:.2f} % of the posteriors are on the same side of 0.5")
    return f"{100 * same:.3f} % on the same side of 0.5"


def exact_clean_prob(given: Values) -> Tensor:
    """EM on the values themselves, in float64; rivals that start elsewhere stop elsewhere."""
    loss, groups, num_groups = given
    return GaussianMixture1D(num_groups=num_groups, bins=None, **SETTINGS).fit(loss, groups).clean_prob(loss, groups)


PRIMITIVES = ("value_histogram", "histogram_zoom", "mixture_em", "mixture_posterior")
RIVALS = {"fastlnl": calling(fastlnl_clean_prob), "scikit-learn": calling(sklearn_clean_prob)}

MIXTURE_CONTESTS = [
    Contest(
        "mixture",
        "two Gaussians fitted to losses, posterior of each sample",
        "N",
        ((10_000,), (50_000,), (250_000,), (1_280_000,)),
        losses,
        RIVALS,
        same_side,
        "tests/test_mixture.py",
        PRIMITIVES,
        lambda size: 12 * size[0],  # read for the histogram and for the posteriors, written once
        {(50_000,): 30.0, (1_280_000,): 500.0},
        quick=((10_000,), (50_000,), (1_280_000,)),
        truth=exact_clean_prob,
    ),
    Contest(
        "mixture per class",
        "two Gaussians fitted to the losses of each class",
        "N x C",
        ((5_000, 10), (50_000, 100)),
        losses,
        RIVALS,
        same_side,
        "tests/test_mixture.py",
        PRIMITIVES,
        lambda size: 28 * size[0],  # and both times the group
        {(50_000, 100): 50.0},
        truth=exact_clean_prob,
    ),
]
