"""tests/ops/test_dynamics_extremes.py on csrc's kernels."""

from test_dynamics_extremes import *  # noqa: F403
