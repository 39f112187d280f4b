"""Two Beta distributions on [0, 1]: bounded losses, and IDO's wrong-event counts."""

from typing import Any, Literal

import torch
from torch import Tensor

from fastlnl.errors import ShapeError
from fastlnl.mixture.base import NO_FIT, Mixture1D, Normalise
from fastlnl.ops.beta_cdf import beta_cdf
from fastlnl.ops.doors import describe
from fastlnl.ops.mixture_em import EMInput, EMOptions, mixture_em
from fastlnl.ops.mixture_em.definitions import beta_constant, inner

FLOOR = 1e-6  # f of Arazo et al. 2019: values are mapped to [f, 1 - f]
START = (0.5, 0.5, 1.0, 2.0, 2.0, 1.0)  # weights, alphas, betas


class BetaMixture1D(Mixture1D):
    """Two-component Beta mixture of N values, or of integer counts, on their device.

        mixture = BetaMixture1D(num_groups=100)
        mixture.fit_counts(wrong_count, label, max_count=25)
        clean_prob, similarity = mixture.count_table()[label, wrong_count].unbind(-1)
        mixture.warm_start, mixture.max_iter = True, 2  # from the second fit on

    Args:
        bins, normalise, warm_start, num_groups: as in `GaussianMixture1D`; with normalise="none" values beyond [0, 1]
            count as 0 and 1.
        method: "moments" matches weighted means and variances, with the floors and clamps of IDO; "likelihood"
            maximises the likelihood.
        tol: stop when the mean log-likelihood moves by less; 0 never stops early.
        max_iter: iterations at most.

    Attributes:
        alpha_, beta_, weights_: (2,) or (G, 2) float64; component 0 starts as the lower one.
        n_iter_, converged_, status_, lower_bound_, limits_: as in `GaussianMixture1D`.

    Nothing here waits for the device. Deterministic. Source: Arazo et al. 2019; Zhang et al. 2025 (IDO).
    """

    beta = True
    alpha_: Tensor
    beta_: Tensor

    def __init__(
        self,
        *,
        bins: int | None = 4096,
        method: Literal["moments", "likelihood"] = "moments",
        normalise: Normalise = "minmax",
        tol: float = 0.0,
        max_iter: int = 20,
        warm_start: bool = False,
        num_groups: int | None = None,
    ) -> None:
        super().__init__(bins, normalise, warm_start, num_groups)
        if method not in ("moments", "likelihood"):
            raise ValueError(f"method is {method!r}; expected 'moments' or 'likelihood'")
        self.method, self.tol, self.max_iter = method, tol, max_iter
        self._max_count: int | None = None

    def fit(self, x: Tensor, groups: Tensor | None = None) -> "BetaMixture1D":
        """Fit to values (N,) of a floating type; see `GaussianMixture1D.fit`."""
        self._max_count = None
        self._fit_values(x, groups)
        return self._named()

    def fit_counts(self, count: Tensor, groups: Tensor | None = None, *, max_count: int) -> "BetaMixture1D":
        """Fit to integer counts (N,) by their histogram; counts outside [0, max_count] are left out.

        The range of each group's counts is mapped to [0, 1]. With groups, the counts of all together are fitted as
        well, for groups that have no mixture of their own.

        Raises:
            ShapeError: shapes or types do not fit.
        """
        if count.dim() != 1 or count.is_floating_point() or count.dtype == torch.bool or max_count < 1:
            raise ShapeError(f"count is {describe(count)}, max_count {max_count}; expected (N,) integers, at least 1")
        _, group = self._values(count.float(), groups)
        total, size = self.num_groups or 1, max_count + 1
        group = torch.zeros_like(count, dtype=torch.int64) if group is None else group
        inside = (count >= 0) & (count <= max_count) & (group >= 0) & (group < total)
        cell = torch.where(inside, group * size + count, 0)
        histogram = torch.zeros(total * size, dtype=torch.int64, device=count.device)
        histogram = histogram.scatter_add_(0, cell, inside.long()).view(total, size)
        histogram = torch.cat((histogram, histogram.sum(0, keepdim=True)))
        value = torch.arange(size, dtype=torch.float64, device=count.device)
        low = torch.where(histogram > 0, value, torch.inf).amin(1).nan_to_num(posinf=0.0)
        high = torch.where(histogram > 0, value, 0).amax(1)
        offset = torch.arange(total + 2, device=count.device) * size
        limits = torch.stack((low, high), dim=1)
        if self._max_count != max_count:
            self._fit = None
        self._max_count = max_count
        points = EMInput(
            value.repeat(total + 1), histogram.view(-1), offset, limits, self._start(total + 1, count.device), None
        )
        self._finish(mixture_em(points, self._options()), limits)
        return self._named()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "max_count": self._max_count} if self._fit is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._max_count = state.get("max_count")
        super().load_state_dict(state)

    def _named(self) -> "BetaMixture1D":
        fitted = self._fitted().fitted
        self.alpha_, self.beta_ = self._shaped(fitted[:, 2:4]), self._shaped(fitted[:, 4:6])
        return self

    def _shaped(self, x: Tensor) -> Tensor:
        return x[0] if self.num_groups is None else x[: self.num_groups]  # counts have all groups together as the last

    def _options(self) -> EMOptions:
        return EMOptions(
            "beta_moments" if self.method == "moments" else "beta_likelihood", tol=self.tol, max_iter=self.max_iter
        )

    def _start(self, groups: int, device: torch.device) -> Tensor:
        start = torch.empty(groups, 6, dtype=torch.float64, device=device)
        for column, value in enumerate(START):
            start[:, column] = value
        if not self.warm_start or self._fit is None or len(self._fit.fitted) != groups:
            return start
        return torch.where((self._fit.info[:, 2:] & int(NO_FIT)) != 0, start, self._fit.fitted[:, :6])

    def cdf(self, x: Tensor, groups: Tensor | None = None) -> Tensor:
        """Distribution functions (N, 2) float64 of both components at values (N,); 0 for NaN and infinite values."""
        x, group = self._values(x, groups)
        member = x.isfinite()
        if group is None:
            group = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        else:
            member &= (group >= 0) & (group < (self.num_groups or 1))
        group = torch.where(member, group, 0)
        found = self._cdf(torch.where(member, x, 0).double()[:, None], group)
        return torch.where(member[:, None], found[:, 0], 0)

    def _cdf(self, value: Tensor, group: Tensor) -> Tensor:
        """Distribution functions (R, K, 2) of the mixtures of `group` (R,) at values (R, K)."""
        fitted = self._fitted().fitted[group]
        z, rest = self._mapped(value, group)
        alpha, beta = fitted[:, None, 2:4], fitted[:, None, 4:6]
        return beta_cdf(inner(z)[..., None], inner(rest)[..., None], alpha, beta)

    def count_table(self) -> Tensor:
        """What each count says about a sample of each group: clean_prob and similarity weight of IDO.

            q_k = weight_k Beta_k(x) / (sum_j weight_j Beta_j(x) + f),   F_k the distribution functions
            clean_prob = q_0,   similarity = q_0 F_0 + (1 - q_1) (1 - F_1)

        Counts above those of the fit give (0, 0). A group without a mixture of its own (no count, fewer than four, or
        all the same) has the table of all groups together; where that has none either, every entry is (1, 1).

        Returns:
            (max_count + 1, 2) or (G, max_count + 1, 2) float32.
        """
        fit = self._fitted()
        if self._max_count is None:
            raise RuntimeError("count_table is about counts; call fit_counts first")
        rows = torch.arange(len(fit.fitted), device=fit.fitted.device)
        count = torch.arange(self._max_count + 1, dtype=torch.float64, device=rows.device).expand(len(rows), -1)
        z, rest = self._mapped(count, rows)
        u, v = inner(z).log()[..., None], inner(rest).log()[..., None]
        weight, alpha, beta = (fit.fitted[:, None, i : i + 2] for i in (0, 2, 4))
        density = (beta_constant(weight, alpha, beta) + (alpha - 1) * u + (beta - 1) * v).exp()
        q0, q1 = (density / (density.sum(-1, keepdim=True) + FLOOR)).unbind(-1)
        f0, f1 = self._cdf(count, rows).unbind(-1)
        table = torch.stack((q0, q0 * f0 + (1 - q1) * (1 - f1)), dim=-1)
        table = torch.where((count > self._all_limits[:, 1:])[..., None], 0, table)
        none = (fit.info[:, 2] & int(NO_FIT)) != 0
        table[-1] = torch.where(none[-1], 1.0, table[-1])
        return self._shaped(torch.where(none[:, None, None], table[-1], table).float())

    def _mapped(self, value: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        """Values (R, K) between the limits of the mixtures of `group` (R,), from below and from above, in [0, 1]."""
        low, high = self._all_limits[group].unbind(1)
        width = torch.where(high > low, high - low, 1)[:, None]
        return ((value - low[:, None]) / width).clamp(0, 1), ((high[:, None] - value) / width).clamp(0, 1)
