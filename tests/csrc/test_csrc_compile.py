"""csrc compiled for GPUs that need not be there: no spills, 128-bit accesses, registers as in the table.

All four architectures where a kernel is not the one that the table was made of (three minutes on two cores), one
otherwise. FASTLNL_CUDA_ARCHS=80,90,100,120 asks for all of them.
"""

import json
import os

import pytest
from cuda_resources import FORMATS, KINDS, TABLE, TARGETS, compilers, measure, state_of_kernels

from fastlnl import extension

pytestmark = pytest.mark.timeout(1200)  # the first one waits for the compilers
KNOWN = json.loads(TABLE.read_text())
CHANGED = KNOWN["state"] != state_of_kernels()
ARCHITECTURES = os.environ.get("FASTLNL_CUDA_ARCHS", ",".join(extension.ARCHITECTURES) if CHANGED else "90").split(",")
COLUMNS = ("16", "64", "256", "1024", "wide")
TWO_VIEW_COLUMNS = ("16", "64", "256", "wide")
ROWS = [
    f"{'row_stats' if target == 'statistics' else 'row_loss'} {kind} {target} {columns}"
    for kind in FORMATS.values()
    for target in TARGETS
    for columns in COLUMNS
]
OTHERS = {  # and whether they read and write 16 bytes at a time
    "dynamics dynamics": (True, True),
    **{f"value_histogram {name}": (False, False) for name in ("clear", "finish")},
    **{f"value_histogram {name}": (True, False) for name in ("range", "fill_shared", "fill_global")},
    **{f"histogram_zoom {name}": (name == "zoom_fill", False) for name in ("zoom_clear", "zoom_fill", "zoom_points")},
    **{f"mixture_em {how} {name}": (False, False) for how in ("mixture_em", "mixture_grid") for name in KINDS[how]},
    **{f"mixture_posterior mixture_posterior {name}": (True, True) for name in KINDS["mixture_posterior"]},
    **{
        f"two_view_loss {kind} views {columns}": (True, True)
        for kind in FORMATS.values()
        for columns in TWO_VIEW_COLUMNS
    },
    **{f"select {name}": (False, False) for name in ("rank", "empty", "count", "narrow", "mark")},
}
NAMES = [*ROWS, *OTHERS]
HERE = [f"sm_{architecture} {name}" for architecture in ARCHITECTURES for name in NAMES]
MORE_REGISTERS = 8  # one step in which registers are handed out: another ptxas build may take that
missing = [name for name, path in zip(("nvcc", "cuobjdump"), compilers(), strict=True) if path is None]
needs_nvcc = pytest.mark.skipif(bool(missing), reason=f"no {' and no '.join(missing)} to compile csrc with")


@pytest.fixture(scope="module")
def compiled():
    return measure(ARCHITECTURES)


def test_the_table_is_complete():
    assert sorted(KNOWN["kernels"]) == sorted(f"sm_{a} {name}" for a in extension.ARCHITECTURES for name in NAMES)


def test_no_kernel_in_the_table_spills():
    assert not {name for name, row in KNOWN["kernels"].items() if row["stack"] or row["local"]}


@needs_nvcc
@pytest.mark.parametrize("name", HERE)
def test_no_spills(name, compiled):
    row = compiled[name]
    assert (row["stack"], row["local"]) == (0, 0)
    assert 0 < row["reg"] <= 168  # three blocks of 128 threads a multiprocessor


@needs_nvcc
@pytest.mark.parametrize("name", HERE)
def test_accesses_of_neighbours(name, compiled):
    """128 bits at a time; four 16-bit logits are 64 bits, and so is a prediction that the statistics write."""
    row, sixteen = compiled[name], "float16" in name
    expected = OTHERS.get(name.partition(" ")[2], (True, "statistics" not in name or sixteen))
    assert (row["wide_loads"] > 0, row["wide_stores"] > 0) == expected


@needs_nvcc
@pytest.mark.parametrize("name", HERE)
def test_as_in_the_table(name, compiled):
    release = extension.nvcc_release(extension.nvcc())
    if release != KNOWN["nvcc"]:
        pytest.skip(f"the table is of nvcc {KNOWN['nvcc']}; here is {release}")
    now, then = compiled[name], KNOWN["kernels"][name]
    assert now["reg"] <= then["reg"] + MORE_REGISTERS
    assert now["shared"] <= then["shared"]
    assert (now["wide_loads"], now["wide_stores"]) == (then["wide_loads"], then["wide_stores"])
