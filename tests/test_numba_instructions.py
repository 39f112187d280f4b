"""The CPU kernels stay what they are: as many instructions as the committed table says, as many on vectors."""

import json
import platform

import numba_instructions
import pytest

MARGIN = 0.03
UPDATE = "if that is meant: python tests/numba_instructions.py --update, and look at the difference"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the table is of x86-64-v3")
def test_hot_kernels_have_the_instructions_of_the_table():
    committed, found = json.loads(numba_instructions.TABLE.read_text()), numba_instructions.measured()
    same = all(committed[name] == found[name] for name in ("numba", "llvmlite"))
    assert found["kernels"].keys() == committed["kernels"].keys()
    for name, before in committed["kernels"].items():
        now = found["kernels"][name]
        # Another LLVM chooses other instructions; that it uses vectors at all is still to be seen.
        margin = MARGIN if same else 0.5
        for count in ("instructions", "vectors"):
            off = abs(now[count] - before[count])
            assert off <= margin * before[count] + 2, f"{name}: {before[count]} -> {now[count]} {count}; {UPDATE}"
