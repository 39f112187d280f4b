"""Faults put into csrc's own kernels: a missing barrier, a plain addition, a step too far. The emulator finds each."""

import ctypes

import emulated
import pytest
import torch
from plain_dynamics import run_epochs

from fastlnl.ops.mixture_em import EMInput, EMOptions, mixture_em
from fastlnl.ops.mixture_posterior import mixture_posterior
from fastlnl.ops.select import cuda_kernel as select_kernel
from fastlnl.ops.select import select
from fastlnl.ops.value_histogram import value_histogram

pytestmark = pytest.mark.usefixtures("device")


def fit():
    value = torch.rand(700).double().sort().values
    limits = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    points = EMInput(value, torch.randint(0, 3, (700,)), torch.tensor([0, 700]), limits, None, None)
    mixture_em(points, EMOptions(init="quantile"))


CALLS = {
    "dynamics": lambda: run_epochs("cpu", 1, [150], 40),
    "value_histogram": lambda: value_histogram(torch.rand(5000)),
    "mixture_em": fit,
    "mixture_posterior": lambda: mixture_posterior(torch.rand(1030), torch.rand(1, 8).double()),
    "select": lambda: select(torch.rand(5000), torch.tensor([70])),
}
BARRIER = "    __syncthreads();\n"
MUTANTS = {  # file, what stands there, what is put in its place, which of them, what the emulator says
    "ids are looked up before all are in": ("dynamics", BARRIER, "", 1, "race"),
    "occurrences are not atomic": (
        "dynamics", "last.largest(slot, position);", "last.set(slot, std::max(last.get(slot), position));", 0, "race",
    ),
    "bins are not emptied": ("value_histogram", "cells.set(i, 0);", ";", 0, "that nobody wrote"),
    "bins are read while others add": ("value_histogram", BARRIER, "", 1, "race"),
    "bins are added without atomics": (
        "value_histogram", "cells.add(bin, uint32_t(count));", "cells.set(bin, cells.get(bin) + count);", 0, "race",
    ),
    "lanes part before a shuffle": ("bins", "== common", "== __shfl_sync(WARP, cell, leader)", 0, "lanes of a"),
    "points are used before all have moved": ("points", BARRIER, "", 0, "nobody wrote|race"),
    "scratch is used again too early": ("points", "  __syncthreads();  // the scratch is free again\n", "", 0, "race"),
    "a value too many": ("mixture_posterior", "args.n - begin,", "args.n + 1 - begin,", 0, "outside of the arguments"),
    "sums by doubling without a barrier": ("select", BARRIER, "", 0, "nobody wrote|race"),
}  # fmt: skip


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    return tmp_path_factory.mktemp("mutants")


@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_in_a_kernel_is_caught(name, objects, monkeypatch, tmp_path):
    file, there, instead, which, says = MUTANTS[name]
    primitive = {"points": "mixture_em", "bins": "value_histogram"}.get(file, file)
    for source in (primitive, file):
        path = next(emulated.CSRC.glob(f"{source}.cu*"))
        text = path.read_text()
        if source == file:
            parts = text.split(there)
            assert len(parts) > which + 1, "no such place in the kernel any more"
            text = there.join(parts[: which + 1]) + instead + there.join(parts[which + 1 :])
        (tmp_path / path.name).write_text(f"{text}// {name}\n")
    sources = [tmp_path / f"{primitive}.cu", emulated.HERE / "emulator.cpp"]
    built = emulated.build(sources, "mutant", "-O0", folder=objects)
    mutant = emulated.prepared(ctypes.CDLL(str(built)))
    monkeypatch.setattr(emulated, "library", lambda: mutant)
    monkeypatch.setattr(select_kernel, "ONE_LAUNCH", 0)
    with pytest.raises(emulated.EmulatorError, match=says):
        CALLS[primitive]()
