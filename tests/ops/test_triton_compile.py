"""The row pass compiled for GPUs that need not be there: no spills, 128-bit accesses, registers as in the table."""

import json
import os
import subprocess
import sys

import pytest
from once import made_once
from triton_resources import CAPABILITIES, CASES, TABLE

pytest.importorskip("triton", reason="Triton is for Linux only")
NAMES = [f"sm_{capability} {classes} {kind} {target}" for capability in CAPABILITIES for classes, kind, target in CASES]
MORE_REGISTERS = 8  # one step in which registers are handed out, twice: another ptxas build may take that


def run_without_interpreter(cache, *arguments):
    """Output of `triton_resources.py` in a process without the interpreter, with an empty cache."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TABLE.with_suffix(".py")), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    cache = tmp_path_factory.mktemp("triton")
    return json.loads(made_once(tmp_path_factory, "triton_resources", lambda: run_without_interpreter(cache)))


def test_every_loss_and_primitive_compiles_as_it_is_launched(tmp_path):
    from fastlnl.ops.row_loss import LOSSES, catalogue

    names = [name for name, loss in LOSSES.items() if getattr(catalogue, name, None) is loss]
    assert run_without_interpreter(tmp_path, "--every") == f"{2 * len(names) + 6} kernels compiled\n"


@pytest.fixture(scope="module")
def table():
    return json.loads(TABLE.read_text())


def test_the_table_is_complete(table):
    assert sorted(table["kernels"]) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_no_spills(name, compiled):
    row = compiled["kernels"][name]
    assert row["stack"] == 0
    assert row["local"] == 0
    assert 0 < row["reg"] <= 255


@pytest.mark.parametrize("name", NAMES)
def test_128_bit_accesses(name, compiled):
    """Where a row starts at a multiple of 16 bytes."""
    classes, kind = name.split()[1:3]
    row = compiled["kernels"][name]
    if int(classes) * {"fp32": 4, "bf16": 2}[kind] % 16 == 0:
        assert row["wide_loads"] > 0
        assert row["wide_stores"] > 0
    else:
        assert row["wide_loads"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_as_in_the_table(name, compiled, table):
    if compiled["triton"] != table["triton"]:
        pytest.skip(f"the table is of Triton {table['triton']}; here is {compiled['triton']}")
    now, then = compiled["kernels"][name], table["kernels"][name]
    assert now["reg"] <= then["reg"] + MORE_REGISTERS
    assert now["shared"] <= then["shared"]
    assert (now["wide_loads"], now["wide_stores"]) == (then["wide_loads"], then["wide_stores"])
