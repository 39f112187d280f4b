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
import importlib
import sys
import torch
import emulated
from fastlnl import backend, extension
from fastlnl.ops.dynamics import dynamics
from fastlnl.ops.histogram_zoom import histogram_zoom
from fastlnl.ops.mixture_em import EMInput, EMOptions, cuda_kernel, mixture_em
from fastlnl.ops.mixture_posterior import mixture_posterior
from fastlnl.ops.row_loss import LOSSES, RowStats, Storage, TableTarget, new_error_word, row_loss
from fastlnl.ops.row_stats import row_stats
from fastlnl.ops.select import select
from fastlnl.ops.two_view_loss.cuda_kernel import two_view_loss
from fastlnl.ops.value_histogram import value_histogram
from fastlnl.state import SampleDynamics
from test_two_view_shapes import call_of

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
backend.implementation = lambda primitive, like: getattr(
    importlib.import_module(f"fastlnl.ops.{primitive}.cuda_kernel"), primitive
)
z, y, index = torch.randn(6, 33), torch.tensor([1, 2, 3, 4, 5, 1]), torch.tensor([0, 1, 2, 3, 4, 0])
weight = torch.rand(6)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    results = []
    for operators in (by_ctypes, by_torch):
        extension.operators = lambda operators=operators: operators
        memory, errors = TableTarget(torch.full((5, 33), 1 / 33), 0.7, 0.9, True), new_error_word()
        result = row_loss(z.to(dtype), y, LOSSES["elr"], (3.0, 1e-4), memory=memory, index=index, weight=weight,
                          grad_scale=0.25, with_stats=True, errors=errors)
        kept = TableTarget(torch.full((5, 7), -0x4400, dtype=torch.int16), 0.7, 0.9, True, Storage("topk", 3, 33), 5,
                           torch.tensor(0))
        book, wide = SampleDynamics(5, 33, history=2), torch.linspace(0, 9, 2200).view(2, 1100)
        alr = LOSSES["alr"], (0.3, 0.0)
        entered = row_loss(z.to(dtype), y, *alr, memory=kept, index=index, book=book, errors=errors)
        last = TableTarget(torch.full((2, 5), -0x4400, dtype=torch.int16), 0.7, 0.9, True, Storage("topk", 2, 1100), 5,
                           torch.tensor(0))
        row_loss(wide.to(dtype), y[:2], *alr, memory=last, index=index[:2], errors=errors)
        results.append((result.loss, result.dlogits, *result.stats, memory.table, errors, entered.loss, entered.dlogits,
                        kept.table, last.table, *(x.nan_to_num(7) for x in book.buffers())))
    for ours, expected in zip(*results):
        assert torch.equal(ours, expected)

x, group, quota = torch.rand(5000), torch.randint(0, 2, (5000,)), torch.tensor([30, 2])
start, draw = torch.tensor([[0.4, 0.6, 1.5, 2, 2, 1]] * 2).double(), torch.tensor([[0.1, 0.6]] * 2).double()
results = []
for operators in (by_ctypes, by_torch):
    extension.operators = lambda operators=operators: operators
    errors, stats = new_error_word(), RowStats(torch.rand(5, 6, generator=torch.Generator().manual_seed(0)), y)
    records, counters = torch.zeros(9, 8, dtype=torch.int32), torch.zeros(12, dtype=torch.int64)
    history = torch.zeros(2, 9, dtype=torch.float16)
    dynamics(records, counters, index, y, stats, num_classes=33, track=("nll", "entropy"), momentum=0.9,
             second_prediction=y.flip(0), history=history, history_statistic="p_label")
    found = [*row_stats(z, y, errors=errors), records, counters, history]
    for limits in (None, torch.tensor([[0.1, 0.7]] * 2).double()):
        histogram = value_histogram(x, group, 2, 256, limits)
        found += [*histogram, *value_histogram(x, bins=512)]
        found += [*histogram_zoom(x, group, histogram, torch.tensor([0.2, 0.6]).double())]
    points = EMInput(histogram.mean.view(-1), histogram.counts.view(-1), torch.tensor([0, 256, 512]),
                     histogram.limits, None, draw)
    for options in (EMOptions(init="kmeans++", clip=True), EMOptions("beta_moments", tol=0.5, max_iter=2)):
        cuda_kernel.BLOCK_POINTS = 8192 if options.clip else 0  # a block each, or a grid
        fit = mixture_em(points._replace(start=None if options.clip else start), options)
        found += [*fit, mixture_posterior(x, fit.odds, group, beta=not options.clip, log_odds=options.clip)]
    results.append([*found, *select(x, quota, group), *select(x[:90], quota[:1], largest=False)])
for ours, expected in zip(*results):
    assert torch.equal(ours, expected), (ours, expected)

for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for scale in ("none", "sample", "batchmean"):
        results = []
        for operators in (by_ctypes, by_torch):
            extension.operators = lambda operators=operators: operators
            torch.manual_seed(0)
            call = call_of(9, 33, dtype, scale, samples=7)
            call.before, call.label[3] = scale == "none", 40
            results.append((*two_view_loss(call), call.wrong_count, call.errors))
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
    code = f"import sys; sys.path[:0] = {[str(HERE), str(HERE.parents[1]), str(HERE.parent / 'ops')]}\n{SCRIPT}"
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
