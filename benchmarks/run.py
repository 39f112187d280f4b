"""Measure what can be measured here, print the tables, write JSON, Markdown and plots: `python benchmarks/run.py`."""

import os

# Read once, when torch starts: idle threads sleep, or those of one rival take the cores from the next.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("KINETO_LOG_LEVEL", "9")

import argparse
import datetime
import json
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import detection
import plot
import tables
import torch
from accuracy import time_to_accuracy
from cases import CASES, SHAPES, WIDEST, Case, Errors, Rival, Shape, errors_of
from libraries import CONTESTS, against_libraries, why_unable
from provenance import commit
from timing import copy_rate, num_batches, peak_bytes, time_rivals

from fastlnl import backend

SECTIONS = ("row_loss", "batch_size", "libraries", "accuracy")
SWEPT_CLASSES, SWEPT_BATCHES = (10, 100), (32, 128, 1024, 8192)
EXACT = 1e-6  # relative error that fastlnl may have where eager float32 has less
PLAUSIBLE = 1e-5  # relative error at which a rival does not compute the same thing

Record = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser().error("--device cuda: torch sees no CUDA device here; leave it out to measure the CPU")
    started = time.perf_counter()
    seconds = arguments.seconds or (15.0 if arguments.full else 3.0)
    report: Record = {"machine": machine(arguments.device), "seconds_per_shape": seconds}
    print("\n".join(tables.machine_lines(report["machine"])))
    chosen = [(case, shape) for case in CASES for shape in arguments.shapes or SHAPES]
    if arguments.full and not arguments.shapes:
        chosen += [(case, WIDEST) for case in CASES]
    if "row_loss" in arguments.only:
        report["copy_bytes_per_second"] = copy_rate(arguments.device)
        report["row_loss"] = [
            record
            for case, shape in chosen
            for record in measure(case, shape, arguments.device, seconds, report["copy_bytes_per_second"])
        ]
        print("\n" + "\n".join(tables.row_loss_lines(report)))
    if "batch_size" in arguments.only:
        case = next(case for case in CASES if case.name == "P3")
        report["batch_size"] = [
            record
            for classes in SWEPT_CLASSES
            for batch in arguments.batches or SWEPT_BATCHES
            for record in measure(case, (batch, classes), arguments.device, seconds / 2)
        ]
        print("\n" + "\n".join(tables.batch_size_lines(report)))
    if "libraries" in arguments.only:
        report["libraries"] = against_libraries(CONTESTS, arguments.device, seconds / 2, say=progress)
        print("\n" + "\n".join(tables.libraries_lines(report)))
    if "accuracy" in arguments.only:
        report["accuracy"] = time_to_accuracy(arguments.seeds, arguments.epochs, arguments.device, say=progress)
        print("\n" + "\n".join(tables.accuracy_lines(report)))
    report["seconds"] = round(time.perf_counter() - started, 1)
    for path in write(report, arguments.out / report["machine"]["folder"]):
        print(path)
    print(f"{report['seconds']:.0f} s in all")
    timed = [record for section in ("row_loss", "batch_size", "libraries") for record in report.get(section, [])]
    return int(any(record["rival"] == "fastlnl" and record["refused"] for record in timed))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="under 5 minutes on 2 cores (the default)")
    length.add_argument("--full", action="store_true", help="more repetitions and (16384, 1000)")
    parser.add_argument("--only", type=sections, default=SECTIONS, help=f"of {','.join(SECTIONS)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device, help="default: what this machine has")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    closer = parser.add_argument_group("to look closer")
    closer.add_argument("--shapes", type=shape, nargs="+", metavar="BxC", help="such as 128x10 4096x1000")
    closer.add_argument("--batches", type=int, nargs="+", help="batch sizes of the section batch_size")
    closer.add_argument("--seconds", type=float, help="of timing per case and shape")
    closer.add_argument("--seeds", type=int, default=5)
    closer.add_argument("--epochs", type=int, help="of the section accuracy, default: the recipe's")
    return parser


def sections(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"{','.join(unknown)} came, expected some of {','.join(SECTIONS)}")
    return names


def shape(text: str) -> Shape:
    batch, _, classes = text.partition("x")
    return int(batch), int(classes)


def measure(case: Case, shape: Shape, device: str, seconds: float, copy: float | None = None) -> list[Record]:
    """A record per rival. One that is wrong, or is not to be had here, is refused: a reason in place of its times."""
    progress(f"{case.name} at {shape[0]} x {shape[1]}")
    problem = case.inputs(shape, device, num_batches(case, shape, device))
    records: dict[str, Record] = {}
    able: dict[str, Rival] = {}
    for name in sorted(case.rivals, key="eager".__ne__):  # eager first, the others are held against its error
        record = records[name] = {"case": case.name, "shape": list(shape), "rival": name, "test": case.test}
        try:
            rival = case.rivals[name](problem)
            errors = errors_of(rival, problem)
        except Exception as error:  # torch.compile without a compiler, say: the others can still be measured
            record["refused"] = why_unable(error)
            continue
        record["errors"] = errors._asdict()
        record["refused"] = why_refused(name, errors, records["eager"].get("errors"))
        if record["refused"] is None:
            record["peak_bytes"] = peak_bytes(rival, problem.batches[0])
            able[name] = rival
    for clock, timings in time_rivals(able, problem, device, seconds).items():
        for name, timing in timings.items():
            record = records[name]
            record.setdefault("clocks", {})[clock] = timing._asdict()
            if clock in ("wall", "cold"):  # the clock of the tables
                record |= timing._asdict() | {
                    "bytes": case.bytes_moved(shape, name),
                    "target": case.target(shape, name),
                }
                record["bytes_per_second"] = record["bytes"] / timing.median
                record["of_copy"] = record["bytes_per_second"] / copy if copy else None
                if "fastlnl" in able:
                    record["speedup"] = timing.median / timings["fastlnl"].median
    return [records[name] for name in case.rivals]


def why_refused(name: str, errors: Errors, eager: Record | None) -> str | None:
    """None if the errors are small enough to print a time; else which one is not."""
    for quantity, error in errors._asdict().items():
        limit = max(EXACT, eager[quantity] if eager else 0.0) if name == "fastlnl" else PLAUSIBLE
        if not error <= limit:
            return f"relative error of {quantity} is {error:.1e}, more than {limit:.1e}"
    return None


def machine(device: str) -> Record:
    """What the numbers depend on."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "folder": "cpu" if gpu is None else gpu.lower().replace(" ", "-"),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ["OMP_WAIT_POLICY"],
        "gpu": gpu,
        "backend": backend.implementation("row_loss", torch.empty(0, 1, device=device)).__module__.split(".")[-1],
        **{name: installed(name) for name in tables.PACKAGES},
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H%MZ"),
    }


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write(report: Record, folder: Path) -> list[Path]:
    """Everything into `folder`, named by date and commit; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{report['machine']['date']}-{report['machine']['commit']}"
    plots = plot.write_plots(report, folder, stem)
    if "accuracy" in report:
        plots += detection.write_plots(folder, stem)
    data, text = folder / f"{stem}.json", folder / f"{stem}.md"
    data.write_text(json.dumps(report, indent=1) + "\n")
    images = [f"![{path.stem.removeprefix(stem + '-')}]({path.name})" for path in plots]
    text.write_text("\n".join([*tables.report_lines(report), "", *images]) + "\n")
    return [data, text, *plots]


def progress(line: str) -> None:
    """To stderr, so that stdout is the report."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
