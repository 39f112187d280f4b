"""The primitives beside the row pass, compiled for absent GPUs: no spills, registers as in the table."""

import json
import os
import subprocess
import sys

import pytest
from once import made_once
from primitive_resources import TABLE

pytest.importorskip("triton", reason="Triton is for Linux only")
MORE_REGISTERS = 8


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What the kernels need now, from a process without the interpreter and with an empty cache."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TABLE.with_suffix(".py")), "90"]  # the table has sm_80 as well

    def make():
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return json.loads(made_once(tmp_path_factory, "primitive_resources", make))


def test_nothing_spills(compiled):
    for name, row in compiled["kernels"].items():
        assert (row["stack"], row["local"]) == (0, 0), name
        assert 0 < row["reg"] <= 255, name


def test_as_in_the_table(compiled):
    table = json.loads(TABLE.read_text())
    assert [name for name in table["kernels"] if name.startswith("sm_90")] == list(compiled["kernels"])
    if compiled["triton"] != table["triton"]:
        pytest.skip(f"the table is of Triton {table['triton']}; here is {compiled['triton']}")
    for name, now in compiled["kernels"].items():
        then = table["kernels"][name]
        assert now["reg"] <= then["reg"] + MORE_REGISTERS, name
        assert now["shared"] <= then["shared"], name
