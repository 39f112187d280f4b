"""tests/ops/test_row_loss_storage.py on csrc's kernels."""

from test_row_loss_storage import *  # noqa: F403
