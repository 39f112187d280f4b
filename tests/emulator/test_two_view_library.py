"""two_view_loss by csrc/library.cpp, as torch calls it."""

import subprocess
import sys

from emulated import HERE
from test_library import library  # noqa: F401

SCRIPT = """
import sys
import torch
import emulated
from fastlnl import extension
from fastlnl.ops.two_view_loss.cuda_kernel import two_view_loss
from test_two_view_shapes import call_of

torch.ops.load_library(sys.argv[1])
library = emulated.library()

class Declared:
    def two_view_loss(*arguments):
        library.emulator_forget()
        for x in arguments:
            emulated.allow(library, x if isinstance(x, torch.Tensor) else None, 3)
        torch.ops.fastlnl_cuda.two_view_loss(*arguments)
        assert library.emulator_error() == b"", library.emulator_error()

for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for scale in ("none", "sample", "batchmean"):
        results = []
        for operators in (emulated.Operators, Declared):
            extension.operators = lambda operators=operators: operators
            torch.manual_seed(0)
            call = call_of(9, 33, dtype, scale, samples=7)
            call.before, call.label[3] = scale == "none", 40
            results.append((*two_view_loss(call), call.wrong_count, call.errors))
        for ours, expected in zip(*results):
            assert torch.equal(ours, expected)
"""


def test_the_operator_gives_what_the_launcher_gives(library):  # noqa: F811
    code = f"import sys; sys.path[:0] = {[str(HERE), str(HERE.parents[1]), str(HERE.parent / 'ops')]}\n{SCRIPT}"
    done = subprocess.run([sys.executable, "-c", code, str(library)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
