"""tests/ops/test_value_histogram.py on csrc's kernels."""

from test_value_histogram import *  # noqa: F403
