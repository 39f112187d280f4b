"""tests/ops/test_mixture_em.py on csrc's kernels."""

from test_mixture_em import *  # noqa: F403
