"""Registers and shared memory of the compiled mixture kernels: `mixture_resources.json`.

Triton compiles for a GPU that is not there, so the table is made and checked anywhere:

python tests/ops/mixture_resources.py [90]       print what the kernels need now (on this capability only)
python tests/ops/mixture_resources.py --update   and write it to mixture_resources.json
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

TABLE = Path(__file__).with_suffix(".json")
CAPABILITIES = (80, 90)
TYPES = {
    **dict.fromkeys(("x", "out"), "*fp32"),
    **dict.fromkeys(("group", "tables", "left_out", "count", "offset", "info"), "*i64"),
    **dict.fromkeys(("limits", "mean", "found", "value", "start_", "draw", "fitted", "odds", "alpha", "beta"), "*fp64"),
    **dict.fromkeys(("n", "num_groups", "copies", "max_iter"), "i32"),
    "keys": "*i32",
}


def cases():
    """Every mixture kernel as it is launched: (name, kernel, constants, other types)."""
    from fastlnl.ops.beta_cdf import triton_kernel as cdf
    from fastlnl.ops.mixture_em import FAMILIES, INITS
    from fastlnl.ops.mixture_em import triton_kernel as em
    from fastlnl.ops.mixture_posterior import triton_kernel as posterior
    from fastlnl.ops.value_histogram import offset_bits
    from fastlnl.ops.value_histogram import triton_kernel as histogram

    for groups in (False, True):
        absent = {} if groups else {"group": None}
        which = "groups" if groups else "one group"
        constants = {"GROUPS": groups, "BLOCK": histogram.BLOCK} | absent
        yield f"range, {which}", histogram.range_kernel, constants, {}
        for limits in (False, True):
            given = {"LIMITS": limits, "BINS": 4096, "keys" if limits else "limits": None}
            named = f"{which}, {'given' if limits else 'found'} limits"
            yield f"fill, {named}", histogram.fill_kernel, constants | given | {"SHIFT": offset_bits(4096)}, {}
            if groups:
                yield f"merge, {named}", histogram.merge_kernel, given | {"CELLS": histogram.CELLS}, {}
        for beta, log_odds in product((False, True), repeat=2):
            named = f"posterior, {which}, {'beta' if beta else 'gaussian'}{', log-odds' if log_odds else ''}"
            constants = {"BETA": beta, "GROUPS": groups, "LOG_ODDS": log_odds, "BLOCK": posterior.BLOCK} | absent
            yield named, posterior.mixture_posterior_kernel, constants, {}
    for family, init, start in product(range(3), range(3), (False, True)):
        if family == 0 or (init == 0 and start):
            constants = {"FAMILY": family, "INIT": init, "REG_COVAR": 5e-4, "TOL": 1e-2, "CLIP": False, "START": start}
            constants |= {"BLOCK": em.BLOCK, "num_warps": em.NUM_WARPS}
            constants |= {} if start else {"start_": None}
            constants |= {} if INITS[init] == "kmeans++" else {"draw": None}
            named = f"em, {FAMILIES[family]}, {INITS[init]}{', start' if start else ''}"
            yield named, em.mixture_em_kernel, constants, {}
    yield "cdf", cdf.beta_cdf_kernel, {"BLOCK": cdf.BLOCK}, {"x": "*fp64", "out": "*fp64"}


def resources(kernel, constants, types, capability):
    import triton
    from triton.backends import nvidia
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = dict(constants)
    options = {"num_warps": constants.pop("num_warps", 4)}
    signature = {name: "constexpr" if name in constants else (TYPES | types)[name] for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if signature[name].startswith("*")}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(Path(nvidia.__file__).parent / "bin" / "cuobjdump"), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {key.lower(): int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return found | {"shared": compiled.metadata.shared}


def measure(capabilities):
    import triton

    rows = {
        f"sm_{capability} {name}": resources(kernel, constants, types, capability)
        for capability in capabilities
        for name, kernel, constants, types in cases()
    }
    return {"triton": triton.__version__, "kernels": rows}


def as_text(table):
    rows = ",\n".join(f'    "{name}": {json.dumps(row)}' for name, row in table["kernels"].items())
    return f'{{\n  "triton": "{table["triton"]}",\n  "kernels": {{\n{rows}\n  }}\n}}\n'


if __name__ == "__main__":
    if os.environ.pop("TRITON_INTERPRET", "0") == "1":
        raise SystemExit("TRITON_INTERPRET is set, but this is about compiled kernels; unset it")
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    text = as_text(measure([int(word) for word in sys.argv[1:] if word.isdigit()] or CAPABILITIES))
    if "--update" in sys.argv:
        TABLE.write_text(text)
    print(text, end="")
