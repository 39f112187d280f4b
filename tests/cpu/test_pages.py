"""Large outputs are ordinary tensors, on large pages where the system has them."""

import resource
from pathlib import Path

import pytest
import torch

from fastlnl.cpu.pages import HUGE_PAGE, LARGE, advise, empty

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.parametrize("batch", [0, 1, 2000, 5000])
def test_an_ordinary_tensor_of_any_size(batch):
    x = empty(batch, 4001)
    assert x.shape == (batch, 4001)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert x.fill_(2.0).sum(dtype=torch.float64) == 2.0 * batch * 4001


@pytest.mark.parametrize("nbytes", [0, 1, HUGE_PAGE - 1, HUGE_PAGE, 3 * HUGE_PAGE + 5])
def test_advice_changes_nothing_but_the_pages(nbytes):
    x = torch.arange(nbytes % 251 + 1, dtype=torch.uint8).repeat(nbytes // (nbytes % 251 + 1) + 1)[:nbytes]
    kept = x.clone()
    assert advise(x) is x
    assert torch.equal(x, kept)


@pytest.mark.skipif(
    not SWITCH.exists() or "[never]" in SWITCH.read_text(), reason="this system has no transparent huge pages"
)
def test_fresh_memory_faults_far_less_than_once_in_4_kib():
    rows = 2 * LARGE // (4 * 4096)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    empty(rows, 4096).fill_(1.0)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < rows * 4 / 2  # a row is four pages of 4 KiB
