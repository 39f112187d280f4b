"""tests/ops/test_row_loss_topk.py on csrc's kernels."""

from test_row_loss_topk import *  # noqa: F403
