"""The emulator finds what a GPU would not tell, and computes what a GPU computes."""

import ctypes
import re

import pytest
import torch
from emulated import HERE, READ, WRITE, allow, build, prepared

from fastlnl.philox import philox4x32

FAULTS = {
    "RACE": "race: write to what thread 63 read without a barrier",
    "UNWRITTEN": "read of shared memory that nobody wrote",
    "OFF_BY_ONE": "access outside of the arguments",
    "LATE_BARRIER": "is not reached by all threads",
    "TWO_WRITERS": "race: write of what thread 0 wrote",
    "MISALIGNED": "not aligned to its 16 bytes",
    "READ_OUTPUT": "read of an output",
    "LANES_APART": "lanes of a warp meet at __s",
    "GLOBAL_RACE": "race: (read|write) (of|to) what thread",
}


@pytest.fixture(scope="module")
def planted(emulator):
    return prepared(ctypes.CDLL(str(build([HERE / "planted.cu", HERE / "emulator.cpp"], "planted"))))


def neighbours(planted, fault, blocks=1):
    """What the emulator says, and the result."""
    x, y, scratch = torch.arange(64.0), torch.full((64,), torch.nan), torch.zeros(64)
    planted.emulator_forget()
    addresses = allow(planted, x, READ), allow(planted, y, WRITE), allow(planted, scratch, READ | WRITE)
    planted.planted_neighbours(*map(ctypes.c_void_p, addresses), fault, blocks)
    return planted.emulator_error().decode(), y


def test_a_faultless_kernel_passes(planted):
    error, y = neighbours(planted, 0)
    assert error == ""
    assert torch.equal(y, (torch.arange(64.0).view(-1, 2).flip(1).flatten() + 1) % 64)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(planted, fault):
    error, _ = neighbours(planted, 1 + list(FAULTS).index(fault))
    assert re.search(FAULTS[fault], error), error
    assert "(block 0, thread" in error


def test_blocks_may_not_write_one_address(planted):
    error, _ = neighbours(planted, 0, blocks=2)
    assert re.fullmatch(
        r"race: write of what thread (\d+) wrote without a barrier in between \(block 1, thread \1\)", error
    )


def test_after_an_error_the_next_launch_runs(planted):
    assert neighbours(planted, 2)[0] != ""
    assert neighbours(planted, 0)[0] == ""


def meeting(planted, fault, blocks=3):
    parts, y = torch.zeros(2 * blocks), torch.full((2, blocks, 32), torch.nan)
    planted.emulator_forget()
    addresses = allow(planted, parts, READ | WRITE), allow(planted, y, WRITE)
    planted.planted_meeting(*map(ctypes.c_void_p, addresses), fault, blocks)
    return planted.emulator_error().decode(), y


@pytest.mark.parametrize("blocks", [1, 3, 5])
def test_blocks_of_a_cooperative_grid_meet(planted, blocks):
    error, y = meeting(planted, 0, blocks)
    assert error == ""
    block = torch.arange(blocks)
    expected = torch.stack([10 * block + 10 * ((block + 1) % blocks) + 2 * turn for turn in (0, 1)])
    assert torch.equal(y, expected[..., None].expand(-1, -1, 32).float())


@pytest.mark.parametrize(("fault", "says"), [
    (1, r"race: read of what thread 0 wrote without a barrier|race: write to what thread"),
    (2, r"grid_barrier is not reached by all threads: 64 wait"),
    (3, r"race: (read|write)"),
])  # fmt: skip
def test_a_fault_of_a_grid_is_caught(planted, fault, says):
    assert re.search(says, meeting(planted, fault)[0])
    assert meeting(planted, 0)[0] == ""


def test_random_words_and_match(planted):
    values = torch.tensor([5, 2**40, 5, -1] * 8)
    words, lanes = torch.zeros(32, 4, dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    planted.emulator_forget()
    planted.planted_words(*(ctypes.c_void_p(allow(planted, x, READ | WRITE)) for x in (values, words, lanes)))
    assert planted.emulator_error() == b""
    counter = torch.stack([torch.arange(32), *(torch.full((32,), n) for n in (1, 2, 3))], -1)
    assert torch.equal(words.long() & 0xFFFFFFFF, philox4x32(counter, (4, 5)))
    same = [sum(1 << other for other in range(32) if values[other] == value) for value in values]
    assert (lanes.long() & 0xFFFFFFFF).tolist() == same
