"""Faults put into csrc's own kernels: a missing barrier, a plain addition, a step too far. The emulator finds each."""

import emulated
import faults
import pytest
import torch
from faults import Fault
from memories import memory_of
from plain_dynamics import run_epochs
from test_row_shapes import call_of

from fastlnl.ops.mixture_em import EMInput, EMOptions, mixture_em
from fastlnl.ops.mixture_em import cuda_kernel as em_kernel
from fastlnl.ops.mixture_posterior import mixture_posterior
from fastlnl.ops.row_loss.cuda_kernel import row_loss
from fastlnl.ops.select import cuda_kernel as select_kernel
from fastlnl.ops.select import select
from fastlnl.ops.value_histogram import value_histogram
from fastlnl.state import SampleDynamics

pytestmark = pytest.mark.usefixtures("device")


def fit(n=700, init="lloyd"):
    value = torch.rand(n).double().sort().values
    limits = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    points = EMInput(value, torch.randint(0, 3, (n,)), torch.tensor([0, n]), limits, None, None)
    mixture_em(points, EMOptions(init=init, max_iter=2))


def on_a_grid():
    faults.library().emulator_processors(3)
    try:
        fit(3100, "quantile")
    finally:
        faults.library().emulator_processors(1)


def rows(name, classes, text=None, book=False):
    call = call_of(name, torch.randn(12, classes), with_stats=False)
    call.book = SampleDynamics(5, classes) if book else None
    if text is not None:
        call.memory = memory_of(torch.softmax(torch.randn(5, classes), 1), text, "cpu")
    row_loss(call)


CALLS = {
    "dynamics": lambda: run_epochs("cpu", 1, [150], 40),
    "value_histogram": lambda: value_histogram(torch.rand(5000)),
    "mixture_em": fit,
    "median": lambda: fit(init="quantile"),
    "grid": on_a_grid,
    "mixture_posterior": lambda: mixture_posterior(torch.rand(1030), torch.rand(1, 8).double()),
    "select": lambda: select(torch.rand(5000), torch.tensor([70])),
    "topk": lambda: rows("alr", 100, "topk:3"),
    "wide topk": lambda: rows("alr", 1101, "topk:3"),
    "book": lambda: rows("cross_entropy", 100, book=True),
    "narrow book": lambda: rows("alr", 10, book=True),
}
BARRIER, GRID = "__syncthreads();", "grid_barrier();"
MUTANTS = {  # the fault, the call that meets it, what the emulator says
    "ids are looked up before all are in": (Fault("dynamics.cu", BARRIER, "", 1), "dynamics", "race"),
    "occurrences are not atomic": (
        Fault("dynamics.cu", "last.largest(slot, position);", "last.set(slot, std::max(last.get(slot), position));"),
        "dynamics", "race",
    ),
    "bins are not emptied": (Fault("value_histogram.cu", "cells.set(i, 0);", ""), "value_histogram", "nobody wrote"),
    "bins are read while others add": (Fault("value_histogram.cu", BARRIER, "", 2), "value_histogram", "race"),
    "bins are added without atomics": (
        Fault("value_histogram.cu", "cells.add(bin, uint32_t(count));", "cells.set(bin, cells.get(bin) + count);"),
        "value_histogram", "race",
    ),
    "lanes part before a shuffle": (
        Fault("bins.cuh", "cell == common", "cell == __shfl_sync(WARP, cell, leader)"), "value_histogram", "lanes of a",
    ),
    "points are used before all have moved": (Fault("points.cuh", BARRIER, "", 2), "mixture_em", "nobody wrote|race"),
    "sums before are read before all are written": (Fault("points.cuh", BARRIER, ""), "median", "nobody wrote|race"),
    "scratch of sums before is used again too early": (Fault("points.cuh", BARRIER, "", 1), "median", "race"),
    "sums of a block are read before all are written": (
        Fault("teams.cuh", BARRIER, ""), "mixture_em", "nobody wrote|race",
    ),
    "scratch of sums is used again too early": (Fault("teams.cuh", BARRIER, "", 1), "mixture_em", "race"),
    "parts are read before all blocks have written": (Fault("points.cuh", GRID, ""), "grid", "race"),
    "parts have one place": (Fault("points.cuh", "turn ^= 1;", ""), "grid", "race"),
    "every block writes the fit": (
        Fault("mixture_em.cu", "threadIdx.x > 0 || crew.number > 0", "threadIdx.x > 0"), "grid", "race",
    ),
    "a value too many": (
        Fault("mixture_posterior.cu", "args.n - begin", "args.n + 1 - begin"), "mixture_posterior", "outside of the",
    ),
    "sums by doubling without a barrier": (Fault("select.cu", BARRIER, "", 3), "select", "nobody wrote|race"),
    "every lane stores the best": (Fault("topk.cuh", "!stores || found != next", "!stores"), "topk", "race"),
    "every lane stores the rest": (
        Fault("topk.cuh", "stores && Lanes::lane() == 0", "stores"), "wide topk", "race",
    ),
    "every occurrence stores its record": (
        Fault("rows.cuh", "!together || occurrences.last.get(place) == row", "true"), "topk", "race",
    ),
    "rows of one sample enter at once": (
        Fault("rows.cuh", "SOURCE == TABLE || enters", "SOURCE == TABLE"), "book", "race",
    ),
    "every lane enters the row": (
        Fault("rows.cuh", "enters && current <= row && Lanes::lane() == 0", "enters && current <= row"), "book",
        "race|nobody wrote",
    ),
    "rows share a place for what is noted": (
        Fault("book.cuh", "i * MAX_BLOCK_ROWS + place", "i * MAX_BLOCK_ROWS"), "book", "race|nobody wrote",
    ),
    "counts of a block are not atomic": (
        Fault("book.cuh", "tally.add(i, Word(sums.sums[i]));", "tally.set(i, tally.get(i) + Word(sums.sums[i]));"),
        "narrow book", "race",
    ),
    "counts are taken before all are in": (Fault("book.cuh", BARRIER, ""), "narrow book", "race"),
}  # fmt: skip
faults.register(*(fault for fault, _, _ in MUTANTS.values()))


@pytest.fixture(autouse=True)
def _whole_grids_and_digits(monkeypatch):
    monkeypatch.setattr(select_kernel, "ONE_LAUNCH", 0)
    monkeypatch.setattr(em_kernel, "BLOCK_POINTS", 3000)


@pytest.mark.parametrize("name", CALLS)
def test_the_kernel_itself_is_right(name, monkeypatch):
    faults.notice(monkeypatch, None, CALLS[name])


@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_in_a_kernel_is_caught(name, monkeypatch):
    fault, call, says = MUTANTS[name]
    with pytest.raises(emulated.EmulatorError, match=says):
        faults.notice(monkeypatch, fault, CALLS[call])
