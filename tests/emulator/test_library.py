"""csrc/library.cpp: the operators as torch calls them, with the emulator's kernels behind; the stable ABI only."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from emulated import COMPILER, CSRC, HERE, build

from fastlnl.extension import TORCH_FLAGS

TORCH = Path(torch.__file__).parent
STABLE = ("aoti_torch_", "torch_")  # what torch promises to keep
ABI = next(flag for flag in TORCH_FLAGS if "TORCH_TARGET_VERSION" in flag)
SCRIPT = """
import sys
import torch
import emulated
from fastlnl import backend, extension
from fastlnl.ops.row_loss import LOSSES, TableTarget, new_error_word, row_loss
from fastlnl.ops.row_loss.cuda_kernel import row_loss as by_operator

torch.ops.load_library(sys.argv[1])
library = emulated.library()

class Declared:
    "The operators; the emulator is told which memory they get."
    def __getattr__(self, name):
        def call(*arguments):
            library.emulator_forget()
            for x in arguments:
                emulated.allow(library, x if isinstance(x, torch.Tensor) else None, 3)
            getattr(torch.ops.fastlnl_cuda, name)(*arguments)
            assert library.emulator_error() == b"", library.emulator_error()
        return call

by_ctypes, by_torch = emulated.Operators, Declared()
backend.implementation = lambda primitive, like: by_operator
z, y, index = torch.randn(6, 33), torch.tensor([1, 2, 3, 4, 5, 1]), torch.tensor([0, 1, 2, 3, 4, 0])
weight = torch.rand(6)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    results = []
    for operators in (by_ctypes, by_torch):
        extension.operators = lambda operators=operators: operators
        memory, errors = TableTarget(torch.full((5, 33), 1 / 33), 0.7, 0.9, True), new_error_word()
        result = row_loss(z.to(dtype), y, LOSSES["elr"], (3.0, 1e-4), memory=memory, index=index, weight=weight,
                          grad_scale=0.25, with_stats=True, errors=errors)
        results.append((result.loss, result.dlogits, *result.stats, memory.table, errors))
    for ours, expected in zip(*results):
        assert torch.equal(ours, expected)
"""


@pytest.fixture(scope="module")
def library(emulator):
    kernels = Path(emulator._name)
    flags = [ABI, f"-I{TORCH / 'include'}", f"-L{TORCH / 'lib'}", "-ltorch_cpu", f"-Wl,-rpath,{TORCH / 'lib'}"]
    flags += [f"-L{kernels.parent}", "-lkernels", f"-Wl,-rpath,{kernels.parent}"]
    return build([CSRC / "library.cpp"], "operators", *flags)


def test_operators_give_what_the_launchers_give(library):
    code = f"import sys; sys.path[:0] = {[str(HERE), str(HERE.parents[1])]}\n{SCRIPT}"
    done = subprocess.run([sys.executable, "-c", code, str(library)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def undefined(path):
    listed = subprocess.run(["nm", "-C", "--undefined-only", path], capture_output=True, text=True, check=True)
    return [line.split(maxsplit=1)[1] for line in listed.stdout.splitlines() if line.strip()]


def test_only_the_stable_abi_is_used(emulator, tmp_path):
    """As it is compiled for a GPU."""
    command = [COMPILER, "-std=c++20", "-fPIC", *TORCH_FLAGS, f"-I{TORCH / 'include'}", "-c", CSRC / "library.cpp"]
    subprocess.run([*command, "-o", tmp_path / "library.o"], check=True, capture_output=True)
    symbols = undefined(tmp_path / "library.o")
    assert not [symbol for symbol in symbols if symbol.startswith(("at::", "c10::", "torch::", "caffe2::"))]
    of_torch = {symbol for symbol in symbols if "torch" in symbol}
    assert "torch_library_impl" in of_torch
    assert all(symbol.startswith(STABLE) for symbol in of_torch)
