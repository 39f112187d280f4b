"""tests/ops/test_row_loss_memory.py on csrc's kernels."""

from test_row_loss_memory import *  # noqa: F403
