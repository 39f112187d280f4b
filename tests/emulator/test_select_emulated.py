"""tests/ops/test_select.py on csrc's kernels, by counting and by digits, whatever the number of samples."""

import pytest
from test_select import *  # noqa: F403

from fastlnl.ops.select import cuda_kernel


@pytest.fixture(params=[4096, 0], ids=["counting", "digits"], autouse=True)
def way(request, monkeypatch):
    monkeypatch.setattr(cuda_kernel, "ONE_LAUNCH", request.param)
