"""Registers, spills, shared memory and 128-bit accesses of csrc's kernels: `cuda_resources.json`.

nvcc compiles for GPUs that are not there, so the table is made and checked anywhere nvcc is:

    python tests/csrc/cuda_resources.py                 print what the kernels need now, all four architectures
    python tests/csrc/cuda_resources.py --update        and write it to cuda_resources.json
    python tests/csrc/cuda_resources.py --link          build the whole library and list its undefined symbols
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastlnl import extension

TABLE = Path(__file__).with_suffix(".json")
SOURCES = (  # the longest to compile first
    "row_loss", "two_view_loss", "row_stats", "mixture_em", "dynamics", "value_histogram", "histogram_zoom",
    "mixture_posterior", "select",
)  # fmt: skip
FORMATS = {"Float": "float32", "BFloat": "bfloat16", "Half": "float16"}
TARGETS = ("statistics", "none", "dense", "table")
COLUMNS = {"4": 16, "8": 64, "32": 256, "0": "wide"}  # by the lanes of a team; a warp has two tiles
ROWS = re.compile(r"(?:rows|two_view)_kernelINS_\d+([A-Za-z]+?)E(?:Li(\d)E)?Li(\d+)ELi(\d+)EE")
OTHER = re.compile(r"7fastlnl\d+([a-z_]+)_kernel(?:IL[ib](\d)E)?")
FAMILIES = ("gaussian", "beta moments", "beta likelihood")
KINDS = {"mixture_em": FAMILIES, "mixture_grid": FAMILIES, "mixture_posterior": ("gaussian", "beta")}


def compilers():
    """nvcc and cuobjdump, each None where it is missing; Triton brings a cuobjdump along."""
    found = shutil.which("cuobjdump")
    if found is None:
        try:
            from triton.backends import nvidia

            found = str(Path(nvidia.__file__).parent / "bin" / "cuobjdump")
        except ImportError:
            found = None
    return extension.nvcc(), found


def name_of(symbol):
    """Such as "float32 table 1024" (columns at most) or "mixture_em gaussian"; None for what is no kernel."""
    match = ROWS.search(symbol)
    if match is None:
        other = OTHER.search(symbol)
        return other and " ".join([other[1], *([KINDS[other[1]][int(other[2])]] if other[2] else [])])
    kind, source, lanes, units = match.groups()
    columns = 1024 if lanes == "32" and int(units) == 8 else COLUMNS[lanes]
    return f"{FORMATS[kind]} {TARGETS[int(source)] if source else 'views'} {columns}"


def state_of_kernels():
    """A digest of what nvcc is given; the bindings have no kernels."""
    options = (*extension.NVCC_FLAGS, *extension.code_options(extension.ARCHITECTURES))
    state = hashlib.sha256(repr(options).encode())
    for path in extension.sources():
        if path.suffix != ".cpp":
            state.update(path.read_bytes())
    return state.hexdigest()[:16]


def compiled(source, architectures):
    """The kernels of one file for all architectures, by one call; kept until csrc changes, made by one process."""
    nvcc, _ = compilers()
    name = f"fastlnl-fatbin-{os.getuid()}-{extension.nvcc_release(nvcc)}-{state_of_kernels()}"
    folder = Path(tempfile.gettempdir(), name)
    folder.mkdir(exist_ok=True)
    path = folder / f"{source}.{'-'.join(architectures)}.fatbin"
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            file = next(path for path in extension.sources() if path.name == f"{source}.cu")
            target = extension.code_options(architectures, lowest=extension.ARCHITECTURES[0])  # as if all were made
            options = [*extension.NVCC_FLAGS, *target, "--threads=0"]
            command = [str(nvcc), *options, "-fatbin", str(file)]
            done = subprocess.run([*command, "-o", f"{path}.new"], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            os.replace(f"{path}.new", path)
    return path


def by_architecture(cuobjdump, option, path):
    """What cuobjdump says of each architecture."""
    text = subprocess.run([cuobjdump, option, path], capture_output=True, text=True, check=True).stdout
    return {part.split(maxsplit=1)[0]: part for part in text.split("\narch = sm_")[1:]}


def measure_file(source, architectures):
    """For each kernel: registers a thread, bytes of stack (spills), static shared memory, 128-bit accesses."""
    _, cuobjdump = compilers()
    path = compiled(source, architectures)
    usage, code = (by_architecture(cuobjdump, option, path) for option in ("--dump-resource-usage", "-sass"))
    found = {}
    for architecture in architectures:
        rows = {}
        for symbol, numbers in re.findall(r"Function (\S+):\s*\n\s*(.*)", usage[architecture]):
            if (name := name_of(symbol)) is not None:
                of = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", numbers))
                rows[name] = {key.lower(): int(of[key]) for key in ("REG", "STACK", "LOCAL", "SHARED")}
        for part in code[architecture].split("Function : ")[1:]:
            if (name := name_of(part.split("\n", 1)[0])) is not None:
                rows[name]["wide_loads"] = len(re.findall(wide("LDG", name), part))
                rows[name]["wide_stores"] = len(re.findall(wide("STG", name), part))
        found |= {f"sm_{architecture} {source} {name}": row for name, row in sorted(rows.items())}
    return found


def wide(instruction, kernel):
    """Accesses of four neighbours: 128 bits, of 16-bit logits 64."""
    bits = "128|64" if kernel.startswith(("bfloat16", "float16")) else "128"
    return rf"\b{instruction}\.E\.(?:{bits})"


def measure(architectures=extension.ARCHITECTURES):
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        measured = list(pool.map(lambda source: measure_file(source, architectures), SOURCES))
    rows = {name: row for rows in measured for name, row in rows.items()}
    return dict(sorted(rows.items(), key=lambda item: architectures.index(item[0].split()[0].removeprefix("sm_"))))


def linked_library(architectures, folder):
    """The whole library, as `fastlnl build` makes it; without torch_cuda, which a torch for the CPU has not."""
    import torch

    link = ("-ltorch_cuda",) if torch.version.cuda else ()
    code, log = extension.run_ninja(Path(folder), extension.build_file(extension.nvcc(), architectures, link))
    assert code == 0, log
    return Path(folder) / extension.LIBRARY


def undefined_symbols(library):
    lines = subprocess.run(["nm", "-D", "-C", "--undefined-only", library], capture_output=True, text=True, check=True)
    return [line.split(maxsplit=1)[1] for line in lines.stdout.splitlines()]


def as_text(release, rows):
    lines = ",\n".join(f'    "{name}": {json.dumps(row)}' for name, row in rows.items())
    head = f'  "nvcc": "{release}",\n  "state": "{state_of_kernels()}"'
    return f'{{\n{head},\n  "kernels": {{\n{lines}\n  }}\n}}\n'


if __name__ == "__main__":
    if "--link" in sys.argv:
        with tempfile.TemporaryDirectory() as scratch:
            library = linked_library(extension.ARCHITECTURES, scratch)
            print(*undefined_symbols(library), f"{library.stat().st_size} bytes", sep="\n")
        raise SystemExit
    text = as_text(extension.nvcc_release(extension.nvcc()), measure())
    if "--update" in sys.argv:
        TABLE.write_text(text)
    print(text, end="")
