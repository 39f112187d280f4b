"""Two components on a line, for one or thousands of groups, from a start to a fit in one call."""

from enum import IntFlag
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastlnl import backend
from fastlnl.errors import ShapeError
from fastlnl.ops.doors import check_device, describe

__all__ = [
    "CERTAIN", "FAMILIES", "INITS", "EMInput", "EMOptions", "Family", "Init", "MixtureFit", "MixtureStatus",
    "mixture_em",
]  # fmt: skip

Family = Literal["gaussian", "beta_moments", "beta_likelihood"]
Init = Literal["lloyd", "quantile", "kmeans++"]
FAMILIES: tuple[Family, ...] = ("gaussian", "beta_moments", "beta_likelihood")
INITS: tuple[Init, ...] = ("lloyd", "quantile", "kmeans++")
CERTAIN = 1000.0  # log-odds of a sample that is clean, or -1000 of one that is not, by rule and not by a fit


class MixtureStatus(IntFlag):
    """What was wrong with a group; 0 is nothing.

    | flag | input | result |
    |---|---|---|
    | EMPTY | no finite value | all clean: clean_prob 1 for any finite value; weights 1 and 0 |
    | TOO_FEW | one to three finite values | the same |
    | ALL_EQUAL | all values the same | the same |
    | COLLAPSED | after the fit a weight is under 1e-3, or the means are equal | parameters as fitted, all clean |
    | TWO_VALUES | two distinct values (points, when binned) | as fitted: one component on each |
    | NON_FINITE | NaN or infinite values among the others | these are left out and get clean_prob 0 |
    """

    EMPTY = 1
    TOO_FEW = 2
    ALL_EQUAL = 4
    COLLAPSED = 8
    TWO_VALUES = 16
    NON_FINITE = 32


class EMOptions(NamedTuple):
    """How to fit; see `mixture_em`."""

    family: Family = "gaussian"
    init: Init = "lloyd"
    reg_covar: float = 5e-4
    tol: float = 1e-2
    max_iter: int = 10
    clip: bool = False


class EMInput(NamedTuple):
    """Weighted points on a line, group after group, ascending in each; see `mixture_em`."""

    value: Tensor  # (M,) float64
    counts: Tensor  # (M,) int64 >= 0; a point that counts 0 is not there
    offset: Tensor  # (G + 1,) int64, group g has the points offset[g] .. offset[g + 1] - 1
    limits: Tensor  # (G, 2) float64, values that are mapped to 0 and 1
    start: Tensor | None  # (G, 6) float64: both weights, both a, both b; NaN where there is none
    draw: Tensor | None  # (G, 2) float64 uniform in [0, 1), for "kmeans++"


class MixtureFit(NamedTuple):
    """Fitted mixtures; component 0 is the lower one, or that which started lower where the means are equal (Gaussian:
    closer than a thousandth of the wider deviation, where the order would be one of rounding)."""

    fitted: Tensor  # (G, 7) float64: both weights, both a, both b, mean log-likelihood before the last M step
    info: Tensor  # (G, 3) int64: iterations, converged, `MixtureStatus`
    odds: Tensor  # (G, 8) float64, the log-odds as a function of the value, for `mixture_posterior`
    cut: Tensor  # (G,) float64, the value up to which a point started in component 0; the highest without a split


def mixture_em(points: EMInput, options: EMOptions) -> MixtureFit:
    """Expectation and maximisation until the mean log-likelihood moves by less than `tol`, or `max_iter` times.

    With `max_iter` 0 the parameters are those of the start.

    Everything is float64. (a, b) are mean and variance of a Gaussian, alpha and beta of a Beta distribution, all in
    units where the limits are 0 and 1.

    "gaussian": scikit-learn's arithmetic. Without a start, the first M step sees a hard split: "lloyd" is 2-means
    from the extremes, "quantile" cuts at the median, "kmeans++" is 2-means from two drawn points. `reg_covar` is added
    to variances, which are never below 1e-12 of the squared range.
    "beta_moments": moment matching with floors and clamps as in IDO (component 0 stays the one that started low);
    "beta_likelihood": maximum likelihood by Newton's method. Both need a start.

    Args:
        points: `EMInput`.
        options: `EMOptions`; `clip` holds values beyond the limits to them when log-odds are taken (Beta always does).

    Returns:
        `MixtureFit`. Never NaN; `MixtureStatus` says what is returned for input that has no two components.

    Raises:
        ShapeError: shapes or types do not fit, or something that is needed is missing.

    Deterministic. Groups do not depend on each other. Source: Dempster et al. 1977; Li et al. 2020 (DivideMix);
    Arazo et al. 2019 and Zhang et al. 2025 (IDO) for the Beta form.
    """
    groups = len(points.offset) - 1
    expected = {
        "value": (points.value.shape[:1], torch.float64),
        "counts": (points.value.shape[:1], torch.int64),
        "offset": ((groups + 1,), torch.int64),
        "limits": ((groups, 2), torch.float64),
        "start": ((groups, 6), torch.float64),
        "draw": ((groups, 2), torch.float64),
    }
    for name, (shape, dtype) in expected.items():
        x = getattr(points, name)
        if x is not None:
            if x.shape != shape or x.dtype != dtype or not x.is_contiguous():
                raise ShapeError(f"{name} is {describe(x)}; expected contiguous {tuple(shape)} {dtype}")
            check_device(name, x, points.value)
    if options.family not in FAMILIES or options.init not in INITS or options.max_iter < 0:
        raise ShapeError(f"options are {options}; family is of {FAMILIES}, init of {INITS}, max_iter at least 0")
    if options.family != "gaussian" and points.start is None:
        raise ShapeError(f"family is {options.family!r} but start is None; give both weights, alphas and betas")
    if options.init == "kmeans++" and points.draw is None and options.family == "gaussian":
        raise ShapeError("init is 'kmeans++' but draw is None; give (G, 2) uniform numbers")
    fit: MixtureFit = backend.implementation("mixture_em", points.counts)(points, options)
    return fit
