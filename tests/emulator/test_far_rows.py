"""Offsets past 2^31 elements, in memory that is there only where it is touched."""

import mmap

import emulated
import pytest
import torch

from fastlnl.ops.row_loss import LOSSES, TableTarget, new_error_word
from fastlnl.ops.row_loss.contract import RowLossInput
from fastlnl.ops.row_loss.cuda_kernel import row_loss
from fastlnl.ops.row_stats.cuda_kernel import row_stats


def far_apart(nbytes, dtype):
    """Memory that is not there until it is touched."""
    try:
        place = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
    except OSError as error:
        pytest.skip(f"no {nbytes >> 30} GiB of addresses here: {error}")
    return torch.frombuffer(place, dtype=dtype)


@pytest.fixture
def unchecked(emulator):
    emulator.emulator_trust(1)  # the emulator's notes would be as large as the memory
    yield emulator
    emulator.emulator_trust(0)


def test_rows_beyond_2_to_the_31_elements(unchecked, device, monkeypatch):
    """The third row begins at element 2^31: reading it with 32-bit offsets would be outside of the tensor."""
    monkeypatch.setattr(emulated, "GRANULE", 1 << 30)
    z = far_apart((2**31 + 16) * 4, torch.float32).as_strided((3, 10), (2**30, 1))
    z.copy_(torch.randn(3, 10))
    label, errors = torch.tensor([1, 2, 3]), new_error_word()
    far, near = row_stats(z, label, errors), row_stats(z.clone(), label, errors)
    assert all(torch.equal(x, y) for x, y in zip(far, near, strict=True))


def test_a_table_beyond_2_to_the_31_elements(unchecked, device, monkeypatch):
    monkeypatch.setattr(emulated, "GRANULE", 1 << 30)
    classes, samples = 1000, 2_200_000
    table = far_apart(classes * samples * 4, torch.float32).view(samples, classes)
    z, index = torch.randn(2, classes), torch.tensor([samples - 1, 3])
    rows = torch.softmax(torch.randn(2, classes), 1)
    table[index] = rows

    def run(table, index):
        memory, loss = TableTarget(table, 0.9, 0.9, False), LOSSES["alr"]
        call = RowLossInput(
            z, None, loss, loss.parameters(), None, memory, index, None, 1.0, "none", False, new_error_word(), None
        )
        return row_loss(call).loss, table[index]

    far, near = run(table, index), run(rows.clone(), torch.tensor([0, 1]))
    assert all(torch.equal(x, y) for x, y in zip(far, near, strict=True))
