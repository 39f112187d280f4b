"""tests/ops/test_two_view_loss_extremes.py on csrc's kernels."""

from test_two_view_loss_extremes import *  # noqa: F403
