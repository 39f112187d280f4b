"""tests/ops/test_row_stats.py on csrc's kernels."""

from test_row_stats import *  # noqa: F403
