"""tests/ops/test_row_loss_extremes.py on csrc's kernels."""

from test_row_loss_extremes import *  # noqa: F403
