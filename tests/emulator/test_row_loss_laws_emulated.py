"""tests/ops/test_row_loss_laws.py on csrc's kernels."""

from test_row_loss_laws import *  # noqa: F403
