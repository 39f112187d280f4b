"""tests/ops/test_histogram_zoom.py on csrc's kernels."""

from test_histogram_zoom import *  # noqa: F403
