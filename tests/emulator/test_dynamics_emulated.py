"""tests/ops/test_dynamics.py on csrc's kernels."""

from test_dynamics import *  # noqa: F403
