"""Who is clean: two components fitted to losses or counts, for all samples or for each class on its own."""

from fastlnl.mixture.beta import BetaMixture1D
from fastlnl.mixture.gaussian import GaussianMixture1D
from fastlnl.ops.mixture_em import MixtureStatus

__all__ = ["BetaMixture1D", "GaussianMixture1D", "MixtureStatus"]
