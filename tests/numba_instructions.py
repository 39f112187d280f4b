"""What the hot CPU kernels are compiled to: instructions, and those on 256-bit vectors.

python tests/numba_instructions.py            prints the table
python tests/numba_instructions.py --update   writes tests/numba_instructions.json

numba compiles for x86-64-v3 (AVX2, FMA) whatever processor runs this, so every x86 machine gives the same counts with
the same numba. A kernel that grows by some per cent does more; one that loses its vectors is no longer vectorised.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TABLE = Path(__file__).with_suffix(".json")
KERNELS = {
    "row_loss": ("fastlnl.ops.row_loss.numba_pass", "process_rows"),
    "dynamics": ("fastlnl.ops.dynamics.numba_kernel", "enter_batch"),
    "mixture_posterior": ("fastlnl.ops.mixture_posterior.numba_kernel", "posterior"),
}
TARGET = {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": ""}


def measured():
    """The table of this numba, compiled in a process of its own: no kernel comes from a cache of another processor."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, **TARGET, "NUMBA_CACHE_DIR": cache}
        command = [sys.executable, __file__, "--count"]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(told.stdout)


def counted():
    import llvmlite
    import numba
    from numba.core.sigutils import normalize_signature

    compile_now, signature = numba.njit, {}

    def njit(*given, **options):
        """Kernels wait until they are asked for, and nothing comes from a cache: there its code cannot be read."""
        if not given or not isinstance(given[0], str):
            return compile_now(*given, **options)

        def wait(function):
            kernel = compile_now(**{name: value for name, value in options.items() if name != "cache"})(function)
            signature[kernel] = given[0]
            return kernel

        return wait

    numba.njit = njit
    kernels = {}
    for name, (module, function) in KERNELS.items():
        kernel = getattr(importlib.import_module(module), function)
        kernel.compile(signature[kernel])
        code = kernel.inspect_asm(normalize_signature(signature[kernel])[0])  # others call it with other types
        instructions = [line for line in code.splitlines() if re.match(r"\t[a-z]", line)]
        kernels[name] = {"instructions": len(instructions), "vectors": sum("%ymm" in line for line in instructions)}
    return {"numba": numba.__version__, "llvmlite": llvmlite.__version__, "kernels": kernels}


if __name__ == "__main__":
    if sys.argv[1:] == ["--count"]:
        print(json.dumps(counted()))
    else:
        table = json.dumps(measured(), indent=1) + "\n"
        if sys.argv[1:] == ["--update"]:
            TABLE.write_text(table)
        print(table, end="")
