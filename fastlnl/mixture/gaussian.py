"""Two Gaussians on a line: the split of DivideMix, CREMA and SANM."""

import torch
from torch import Tensor

from fastlnl import philox
from fastlnl.mixture.base import NO_FIT, Mixture1D, Normalise
from fastlnl.ops.mixture_em import INITS, EMOptions, Init, MixtureStatus


class GaussianMixture1D(Mixture1D):
    """Two-component Gaussian mixture of N values on their device, in scikit-learn's words.

        mixture = GaussianMixture1D().fit(loss)
        is_clean = mixture.clean_prob(loss) > 0.5

    The defaults are the fit of DivideMix. It stops after a few iterations, so the start decides the split.

    Args:
        bins: values are counted in so many bins, a power of two, finer ones around the cut of the start, and EM runs on
            those; None sorts the values and runs everything on them. The posteriors then differ by about 1e-6.
        init: "lloyd" (2-means from the extremes), "quantile" (a cut at the median), "kmeans++" (2-means from two drawn
            points).
        normalise: "minmax" maps the values of a fit to [0, 1] first; "p5p95" maps their 5 % and 95 % quantiles to 0 and
            1, fits those in between and treats values beyond like the quantiles (it sorts); "none" leaves them.
        reg_covar: added to the variances, in normalised units squared.
        tol: stop when the mean log-likelihood moves by less.
        max_iter: iterations at most.
        warm_start: start from the last fit, where there was one.
        seed: of "kmeans++".
        num_groups: G; `fit(x, groups)` then fits G independent mixtures.

    Attributes:
        means_, variances_, weights_: (2,) or (G, 2) float64, lower component first, in normalised units.
        n_iter_, converged_, status_: () or (G,); `MixtureStatus` says what was wrong with the values.
        lower_bound_: () or (G,), mean log-likelihood.
        limits_: (2,) or (G, 2), the values that are 0 and 1 in normalised units.

    Raises:
        ValueError: an option is none of the above.

    Nothing here waits for the device. Deterministic: neither the order of the values nor the number of threads changes
    a bit. Source: Li, Socher and Hoi 2020.
    """

    means_: Tensor
    variances_: Tensor

    def __init__(
        self,
        *,
        bins: int | None = 4096,
        init: Init = "lloyd",
        normalise: Normalise = "minmax",
        reg_covar: float = 5e-4,
        tol: float = 1e-2,
        max_iter: int = 10,
        warm_start: bool = False,
        seed: int = 0,
        num_groups: int | None = None,
    ) -> None:
        super().__init__(bins, normalise, warm_start, num_groups)
        if init not in INITS:
            raise ValueError(f"init is {init!r}; expected one of {', '.join(INITS)}")
        self.init, self.reg_covar, self.tol, self.max_iter, self.seed = init, reg_covar, tol, max_iter, seed

    def fit(self, x: Tensor, groups: Tensor | None = None) -> "GaussianMixture1D":
        """Fit to values (N,) of a floating type; groups (N,) integer, ids outside [0, G) belong to no mixture.

        Returns:
            self.

        Raises:
            ShapeError: shapes or types do not fit.
        """
        draw = None
        if self.init == "kmeans++":
            ids = torch.arange(self.num_groups or 1, device=x.device)
            draw = philox.uniform(self.seed, "mixture_em", ids, draws=2)
        self._fit_values(x, groups, draw)
        return self._named()

    def _named(self) -> "GaussianMixture1D":
        fitted = self._fitted().fitted
        self.means_, self.variances_ = self._shaped(fitted[:, 2:4]), self._shaped(fitted[:, 4:6])
        return self

    def _options(self) -> EMOptions:
        clip = self.normalise == "p5p95"
        return EMOptions("gaussian", self.init, self.reg_covar, self.tol, self.max_iter, clip)

    def _start(self, groups: int, device: torch.device) -> Tensor | None:
        if not self.warm_start or self._fit is None:
            return None
        useless = (self._fit.info[:, 2:] & int(NO_FIT | MixtureStatus.COLLAPSED)) != 0
        return torch.where(useless, torch.nan, self._fit.fitted[:, :6])
