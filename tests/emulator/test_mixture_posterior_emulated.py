"""tests/ops/test_mixture_posterior.py on csrc's kernels."""

from test_mixture_posterior import *  # noqa: F403
