"""tests/ops/test_row_loss.py on csrc's kernels."""

from test_row_loss import *  # noqa: F403
