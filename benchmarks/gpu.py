"""What is run where there is a GPU, part by part: `python benchmarks/gpu.py` or `python benchmarks/gpu.py PART ...`.

gpu.md tells what each part shows. Each one ends within ten minutes; `--seconds` stops before a part that would not fit
any more. Logs and a summary with device, driver, versions and commit go to results/gpu/.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import NamedTuple

import gpu_bytes
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ROW_TESTS = [f"tests/ops/test_row_{name}.py" for name in ("loss", "loss_memory", "loss_storage", "loss_topk", "stats")]
OTHER_TESTS = [
    f"tests/ops/test_{name}.py"
    for name in (
        "dynamics", "dynamics_extremes", "value_histogram", "histogram_zoom", "mixture_em", "mixture_posterior",
        "select", "two_view_loss", "two_view_loss_extremes",
    )
]  # fmt: skip
STEPS = [
    f"tests/{name}.py"
    for name in (
        "csrc/test_csrc_gpu", "csrc/test_two_view_gpu", "test_selection", "test_trainer", "test_loader",
        "test_loader_passes",
    )
]  # fmt: skip


class Part(NamedTuple):
    """Commands that run one after another, each in the repository's root; the first that fails ends the part."""

    commands: list[list[str]]
    minutes: float  # at most
    settings: dict[str, str] = {}  # noqa: RUF012  of the environment


def python(*words: str) -> list[str]:
    return [sys.executable, *words]


def pytest(*words: str) -> list[str]:
    return python("-m", "pytest", "-q", *words)


def sanitised(tool: str, tests: list[str], chosen: str) -> Part:
    """Under compute-sanitizer, every tensor an allocation of its own: then steps beyond its end are seen."""
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *pytest("-x", *tests, "-k", chosen)]
    return Part([command], 9.5, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def benchmark(*sections: str) -> Part:
    return Part([python("benchmarks/run.py", "--device", "cuda", "--full", "--only", ",".join(sections))], 9.5)


TOOLS = ("memcheck", "racecheck", "initcheck")
PARTS = {
    "build": Part([python("-m", "fastlnl", "build"), python("-m", "fastlnl", "doctor")], 5),
    "table": Part([pytest("tests/csrc/test_csrc_compile.py")], 9.5),
    "ops": Part([pytest("-n", "4", "tests/ops")], 9.5),
    "gpu": Part([pytest("-m", "gpu", "tests")], 9.5),
    **{
        f"methods-{name}": Part([pytest("tests/losses", "tests/methods")], 9.5, {"FASTLNL_BACKEND": name})
        for name in ("reference", "triton")
    },
    **{f"{tool}-rows": sanitised(tool, ROW_TESTS, "cuda and not wide") for tool in TOOLS},
    **{f"{tool}-others": sanitised(tool, OTHER_TESTS, "cuda") for tool in TOOLS},
    "steps": Part([pytest("-m", "gpu", *STEPS)], 9.5),
    "bytes": Part([python("benchmarks/gpu_bytes.py")], 5),
    "benchmark-rows": benchmark("row_loss", "batch_size"),
    "benchmark-libraries": benchmark("libraries"),
}


def machine() -> dict[str, str]:
    """What the results are of."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    head = ["git", "rev-parse", "--short", "HEAD"]
    told = {name: output(command) for name, command in (("device, driver", query), ("commit", head))}
    for package in ("torch", "triton"):
        told[package] = getattr(sys.modules.get(package) or __import__(package), "__version__", "unknown")
    return told | {"cuda": str(torch.version.cuda), "copy GB/s": f"{gpu_bytes.copy_rate() / 1e9:.0f}"}


def output(command: list[str]) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown ({error})"


def run_part(part: Part, log: Path) -> str:
    """ "ok", or what went wrong; everything the commands say is in the log."""
    end = time.monotonic() + 60 * part.minutes
    with open(log, "w") as file:
        for command in part.commands:
            file.write(f"$ {' '.join(command)}\n")
            file.flush()
            try:
                code = subprocess.run(
                    command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=os.environ | part.settings,
                    timeout=max(1.0, end - time.monotonic()),
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                return f"longer than {part.minutes} minutes: {' '.join(command)}"
            except OSError as error:
                return f"{command[0]} does not run: {error}"
            if code != 0:
                return f"exit status {code}: {' '.join(command)}"
    return "ok"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: all; {', '.join(PARTS)}")
    parser.add_argument("--list", action="store_true", help="print the commands of the parts, run nothing")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no part that may end later")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu")
    arguments = parser.parse_args()
    names = arguments.parts or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if arguments.list:
        for name in names:
            for command in PARTS[name].commands:
                settings = [f"{key}={value}" for key, value in PARTS[name].settings.items()]
                print(f"{name:18} {' '.join([*settings, *command])}")
        return 0
    if not torch.cuda.is_available():
        print("no CUDA device is visible to torch: nothing was run (--list shows what would be)", file=sys.stderr)
        return 2
    begin, told = time.monotonic(), machine()
    folder = arguments.out / f"{date.today()}-{told['commit']}"
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, str] = {}
    for name in names:
        if time.monotonic() - begin + 60 * PARTS[name].minutes > arguments.seconds:
            results[name] = "not begun"
        else:
            results[name] = run_part(PARTS[name], folder / f"{name}.log")
        print(f"{name:18} {results[name]}", flush=True)
        summary = folder / "summary.json"
        before = json.loads(summary.read_text())["parts"] if summary.exists() else {}
        summary.write_text(json.dumps({"machine": told, "parts": before | results}, indent=2) + "\n")
    return int(any(result != "ok" for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
