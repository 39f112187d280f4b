"""Registers, spills and wide memory accesses of the compiled row pass: `triton_resources.json`.

Triton compiles for a GPU that is not there, so the table is made and checked anywhere:

    python tests/ops/triton_resources.py            print what the kernels need now
    python tests/ops/triton_resources.py --update   and write it to triton_resources.json
    python tests/ops/triton_resources.py --every    compile every loss and primitive as it is launched
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TABLE = Path(__file__).with_suffix(".json")
CAPABILITIES = (80, 90)
CLASSES = (10, 100, 1000, 8192, 21841)  # the last is wider than a register tile
LOSSES = {"none": "cross_entropy", "dense": "soft_cross_entropy", "table": "alr"}
STORAGES = [(100, "bfloat16"), (1000, "bfloat16"), (1000, "float16"), (1000, "uint8")]
STORAGES += [(c, "topk:16") for c in (100, 1000, 21841)]
CASES = [(c, "fp32", t) for c in CLASSES for t in LOSSES] + [(1000, "bf16", t) for t in LOSSES]
CASES += [(c, "fp32", t) for c, t in STORAGES]
TYPES = {
    **dict.fromkeys(("label", "index", "prediction", "errors", "step"), "*i64"),
    **dict.fromkeys(("target", "weight", "loss", "stats", "factor"), "*fp32"),
    **dict.fromkeys(("batch", "num_samples", "seed"), "i32"),
    **dict.fromkeys(("use", "keep", "grad_scale", "constant", "q0", "q1", "q2", "q3"), "fp32"),
}


def resources(classes, kind, target, capability):
    """What one kernel takes: registers a thread, bytes of stack, local and shared memory, accesses in PTX.

    `target` is a key of `LOSSES` or the storage of a label memory.
    """
    from fastlnl.ops.row_loss import LOSSES as DEFINED
    from fastlnl.ops.row_loss import Storage
    from fastlnl.ops.row_loss.triton_kernel import TILE_COLUMNS, compiled_coefficients, tile_launch
    from fastlnl.ops.row_loss.triton_wide import wide_launch

    storage = Storage() if target in LOSSES else Storage.parse(target, classes)
    kernel, _, shape = tile_launch(128, classes) if classes <= TILE_COLUMNS else wide_launch(128, classes, storage)
    warps = shape.pop("num_warps")
    target = target if target in LOSSES else "table"
    constants = shape | {
        "C": classes,
        "STRIDE": classes,
        "COEFFICIENTS": compiled_coefficients(DEFINED[LOSSES[target]]),
        "TARGET": list(LOSSES).index(target),
        "LABEL": True,
        "INDEX": target == "table",
        "WEIGHT": False,
        "STATS": False,
        "ONE_HOT": True,
        "STORAGE": storage.kind,
        "KEPT": storage.kept,
    }
    if not storage.lossy:
        constants["step"] = None
    words = {1: "*u8", 2: "*i16", 4: "*fp32"}[storage.dtype.itemsize]
    compiled = compile_kernel(kernel, constants, warps, capability, kind, target=words)
    asm = compiled.asm
    return usage_of(compiled) | {
        "shared": compiled.metadata.shared,  # taken at the launch, so not in the cubin
        "wide_loads": len(re.findall(r"ld\.global[.\w:]*\.v4\.[bfsu]32", asm["ptx"])),
        "wide_stores": len(re.findall(r"st\.global[.\w:]*\.v4\.[bfsu]32", asm["ptx"])),
    }


def usage_of(compiled):
    """Registers a thread, bytes of stack and of local memory."""
    from triton.backends import nvidia

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(Path(nvidia.__file__).parent / "bin" / "cuobjdump"), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key.lower(): int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}


def compile_kernel(kernel, constants, warps, capability, kind="fp32", **types):
    """A kernel for a GPU that need not be there; an argument that is None at the launch is a constant None."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = TYPES | {"logits": f"*{kind}", "dlogits": f"*{kind}"} | types
    signature = {n: "constexpr" if n in constants else types[n] for n in kernel.arg_names}
    pointers = {}  # by place; those of a tuple have two numbers
    for i, kinds in enumerate(signature.values()):
        one = isinstance(kinds, str)
        pointers |= {(i,) if one else (i, j): k for j, k in enumerate([kinds] if one else kinds)}
    aligned = {place: [["tt.divisibility", 16]] for place, k in pointers.items() if k.startswith("*")}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


def compile_every(capability=90):
    """Every loss as it is launched, with statistics and without, and the other primitives; returns how many kernels."""
    from fastlnl.ops.row_loss import LOSSES as DEFINED
    from fastlnl.ops.row_loss.triton_kernel import compiled_coefficients, tile_launch, tile_shape
    from fastlnl.ops.row_stats.triton_kernel import row_stats_kernel
    from fastlnl.ops.scale_rows.triton_kernel import scale_rows_kernel

    count = 0
    for loss in DEFINED.values():
        for stats in (False, True):
            kernel, _, shape = tile_launch(128, 100)
            warps, target = shape.pop("num_warps"), 2 if loss.needs_target else 0
            label = loss.needs_label or stats
            absent = {"label": label, "index": target == 2, "target": target == 2, "weight": stats}
            constants = shape | {"C": 100, "STRIDE": 100, "COEFFICIENTS": compiled_coefficients(loss), "TARGET": target}
            constants |= {"LABEL": label, "INDEX": target == 2, "WEIGHT": stats, "STATS": stats, "ONE_HOT": False}
            constants |= {"STORAGE": "float32", "KEPT": 0, "step": None}
            constants |= {name: None for name, there in absent.items() if not there}
            compile_kernel(kernel, constants, warps, capability)
            count += 1
    for classes in (100, 9000):
        shape = tile_shape(min(classes, 8192))
        warps = shape.pop("num_warps")
        compile_kernel(row_stats_kernel, shape | {"C": classes, "STRIDE": classes}, warps, capability)
        for per_row in (0, 1):
            compile_kernel(scale_rows_kernel, {"C": classes, "PER_ROW": per_row, "BLOCK": 4096}, 4, capability, "fp16")
        count += 3
    return count


def measure():
    import triton

    rows = {
        f"sm_{capability} {classes} {kind} {target}": resources(classes, kind, target, capability)
        for capability in CAPABILITIES
        for classes, kind, target in CASES
    }
    return {"triton": triton.__version__, "kernels": rows}


def as_text(table):
    rows = ",\n".join(f'    "{name}": {json.dumps(row)}' for name, row in table["kernels"].items())
    return f'{{\n  "triton": "{table["triton"]}",\n  "kernels": {{\n{rows}\n  }}\n}}\n'


if __name__ == "__main__":
    if os.environ.pop("TRITON_INTERPRET", "0") == "1":
        raise SystemExit("TRITON_INTERPRET is set, but this is about compiled kernels; unset it")
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    if "--every" in sys.argv:
        print(compile_every(), "kernels compiled")
        raise SystemExit
    text = as_text(measure())
    if "--update" in sys.argv:
        TABLE.write_text(text)
    print(text, end="")
