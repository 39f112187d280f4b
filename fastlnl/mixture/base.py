"""What both mixtures share: values become weighted points, points a fit, a fit answers for new values."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fastlnl.errors import ShapeError
from fastlnl.ops.doors import describe
from fastlnl.ops.histogram_zoom import histogram_zoom
from fastlnl.ops.mixture_em import EMInput, EMOptions, MixtureFit, MixtureStatus, mixture_em
from fastlnl.ops.mixture_posterior import mixture_posterior
from fastlnl.ops.value_histogram import value_histogram

Normalise = Literal["minmax", "p5p95", "none"]
RANGE_BINS = 4096  # of the histogram that finds the range for a fit to the values themselves
NO_FIT = MixtureStatus.EMPTY | MixtureStatus.TOO_FEW | MixtureStatus.ALL_EQUAL
UNUSABLE = NO_FIT | MixtureStatus.COLLAPSED  # posteriors of such a fit say nothing about a single sample


class Mixture1D:
    """Fits, and answers; see the two families."""

    beta = False

    weights_: Tensor  # (2,) or (G, 2) float64
    n_iter_: Tensor  # () or (G,) int64
    converged_: Tensor  # () or (G,) bool
    status_: Tensor  # () or (G,) int64, `MixtureStatus`
    lower_bound_: Tensor  # () or (G,) float64
    limits_: Tensor  # (2,) or (G, 2) float64

    def __init__(self, bins: int | None, normalise: Normalise, warm_start: bool, num_groups: int | None) -> None:
        if normalise not in get_args(Normalise):
            raise ValueError(f"normalise is {normalise!r}; expected one of {', '.join(get_args(Normalise))}")
        if num_groups is not None and num_groups < 1:
            raise ValueError(f"num_groups is {num_groups}; expected at least 1, or None for one mixture")
        self.bins, self.normalise, self.warm_start, self.num_groups = bins, normalise, warm_start, num_groups
        self._fit: MixtureFit | None = None

    def _start(self, groups: int, device: torch.device) -> Tensor | None:
        """Parameters to start from (G, 6), NaN where there are none."""
        raise NotImplementedError

    def _options(self) -> EMOptions:
        raise NotImplementedError

    def _named(self) -> "Mixture1D":
        """Give the fitted values their names in this family."""
        raise NotImplementedError

    def _fit_values(self, x: Tensor, groups: Tensor | None, draw: Tensor | None = None) -> None:
        x, group = self._values(x, groups)
        count, limits, ordered = self.num_groups or 1, None, None
        if self.bins is None or self.normalise == "p5p95":
            ordered = SortedValues(x, group, count)
        if ordered is not None and self.normalise == "p5p95":
            limits = torch.stack((ordered.quantile(0.05), ordered.quantile(0.95)), dim=1)
        histogram = value_histogram(x, group, count, self.bins or RANGE_BINS, limits)
        offset = torch.arange(count + 1, device=x.device) * histogram.counts.shape[1]
        used = unit_limits(histogram.limits) if self.normalise == "none" else histogram.limits
        start = self._start(count, x.device)
        points = EMInput(histogram.mean.view(-1), histogram.counts.view(-1), offset, used, start, draw)
        if self.bins is None and ordered is not None:
            value, offset = ordered.value, ordered.offset
            points = EMInput(value, ordered.between(histogram.limits).long(), offset, used, start, draw)
        elif not self.beta:
            # A start cuts between values, so bins around the cut have to be finer; warm or cold, the same ones.
            cut = mixture_em(points._replace(start=None), self._options()._replace(max_iter=0)).cut
            zoom = histogram_zoom(x, group, histogram, cut)
            offset = torch.arange(count + 1, device=x.device) * zoom.value.shape[1]
            points = EMInput(zoom.value.view(-1), zoom.counts.view(-1), offset, used, start, draw)
        self._finish(mixture_em(points, self._options()), used)
        self.status_ |= self._shaped(torch.where(histogram.left_out > 0, int(MixtureStatus.NON_FINITE), 0))

    def _values(self, x: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if x.dim() != 1 or not x.is_floating_point():
            raise ShapeError(f"x is {describe(x)}; expected (N,) of a floating type, such as one loss a sample")
        if (groups is None) != (self.num_groups is None):
            raise ShapeError(
                f"groups is {'None' if groups is None else 'given'} but num_groups is {self.num_groups}; give both, "
                "such as the labels and the number of classes, or neither"
            )
        if groups is not None and (groups.shape != x.shape or groups.is_floating_point() or groups.dtype == torch.bool):
            raise ShapeError(f"groups is {describe(groups)}; expected {tuple(x.shape)} of an integer type")
        return x.detach().float().contiguous(), None if groups is None else groups.long().contiguous()

    def _finish(self, fit: MixtureFit, limits: Tensor) -> None:
        self._fit, self._all_limits = fit, limits
        steps, converged, status = (self._shaped(column) for column in fit.info.unbind(1))
        self.weights_, self.lower_bound_ = self._shaped(fit.fitted[:, :2]), self._shaped(fit.fitted[:, 6])
        self.n_iter_, self.converged_, self.status_ = steps, converged > 0, status.clone()
        self.limits_ = self._shaped(limits)

    def _shaped(self, x: Tensor) -> Tensor:
        """(G, ...), or without the first axis where there is one mixture."""
        return x[0] if self.num_groups is None else x

    def _fitted(self) -> MixtureFit:
        if self._fit is None:
            raise RuntimeError(f"this {type(self).__name__} is not fitted yet; call fit first")
        return self._fit

    def state_dict(self) -> dict[str, Any]:
        """The fit, if there is one: what a warm start begins from and questions are answered by."""
        return {} if self._fit is None else {**self._fit._asdict(), "limits": self._all_limits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self._finish(MixtureFit(*(state[name] for name in MixtureFit._fields)), state["limits"])
            self._named()

    def clean_prob(self, x: Tensor, groups: Tensor | None = None) -> Tensor:
        """Posterior (N,) float32 of the lower component; 0 for NaN and infinite values."""
        return mixture_posterior(*self._question(x, groups), beta=self.beta)

    def log_odds(self, x: Tensor, groups: Tensor | None = None) -> Tensor:
        """Log of clean_prob / (1 - clean_prob), (N,) float32, from the log-densities: no log of 0.

        Held to [-1000, 1000]; these two values stand for a rule (`MixtureStatus`), or for a fit that is as sure.
        """
        return mixture_posterior(*self._question(x, groups), beta=self.beta, log_odds=True)

    def predict_proba(self, x: Tensor, groups: Tensor | None = None) -> Tensor:
        """Posterior (N, 2) float32 of both components, the lower one first."""
        odds = self.log_odds(x, groups)
        return torch.stack((odds, -odds), dim=1).sigmoid()

    def _question(self, x: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        fit = self._fitted()
        x, group = self._values(x, groups)
        return x, fit.odds[: self.num_groups or 1], group


def unit_limits(like: Tensor) -> Tensor:
    """Limits (G, 2) that leave values as they are."""
    limits = torch.zeros_like(like)
    limits[:, 1] = 1.0
    return limits


class SortedValues:
    """Finite values of each group in ascending order; those that are of no group stand last."""

    def __init__(self, x: Tensor, group: Tensor | None, groups: int) -> None:
        finite = x.isfinite()
        if group is None:
            self.value = torch.where(finite, x, torch.inf).sort().values.double()
            self.offset = torch.stack((finite.new_zeros((), dtype=torch.int64), finite.sum()))
            return
        order = x.argsort(stable=True)
        member = finite & (group >= 0) & (group < groups)
        key, by_group = torch.where(member, group, groups)[order].sort(stable=True)
        self.value = x[order[by_group]].double()
        self.offset = torch.searchsorted(key, torch.arange(groups + 1, device=x.device))

    def quantile(self, q: float) -> Tensor:
        """(G,), linear between neighbours; 0 in an empty group."""
        n = self.offset[1:] - self.offset[:-1]
        if len(self.value) == 0:
            return torch.zeros(len(n), dtype=torch.float64, device=n.device)
        at = q * (n - 1).clamp(min=0).double()
        below = at.floor()
        first = (self.offset[:-1] + below.long()).clamp(max=len(self.value) - 1)
        second = (first + (at > below)).clamp(max=len(self.value) - 1)
        step = torch.where(at > below, (at - below) * (self.value[second] - self.value[first]), 0)
        return torch.where(n > 0, self.value[first] + step, 0)

    def between(self, limits: Tensor) -> Tensor:
        """Which values (M,) lie within the limits (G, 2) of their group."""
        at = torch.arange(len(self.value), device=self.value.device)
        group = (torch.searchsorted(self.offset, at, right=True) - 1).clamp(max=len(limits) - 1)
        return (self.value >= limits[group, 0]) & (self.value <= limits[group, 1])
