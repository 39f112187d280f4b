"""tests/ops/test_two_view_loss.py on csrc's kernels."""

from test_two_view_loss import *  # noqa: F403
