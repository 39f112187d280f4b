"""Measure what can be measured here, print the tables, write JSON, Markdown and plots: `python benchmarks/run.py`."""

import os

# Read once, when torch starts: idle threads sleep, or those of one rival take the cores from the next.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("KINETO_LOG_LEVEL", "9")

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import compare
import detection
import plot
import tables
import torch
from accuracy import time_to_accuracy
from cases import CASES, SHAPES, WIDEST, Case, Shape
from contests import Contest
from epochs import measure_epochs, state_bytes
from libraries import CONTESTS, against_libraries
from machine import machine
from measuring import measure
from steps import measure_steps
from summary import summary_lines
from timing import copy_rate

SECTIONS = ("row_loss", "batch_size", "libraries", "step", "epoch", "accuracy")
SWEPT_CLASSES, SWEPT_BATCHES = (10, 100), (32, 128, 1024, 8192)
QUICK_SHAPES = ((8192, 10),)

Record = dict[str, Any]


class Length(NamedTuple):
    """How much time is spent."""

    seconds: float  # of timing per case and shape
    contest_seconds: float  # per contest and size
    fewest: int  # samples of a case
    seeds: int


QUICK, FULL = Length(1.0, 0.4, 5, 2), Length(15.0, 5.0, 15, 5)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.compare:
        print("\n".join(compare.compare_lines(*(json.loads(path.read_text()) for path in arguments.compare))))
        return 0
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser().error("--device cuda: torch sees no CUDA device here; leave it out to measure the CPU")
    cases, contests = chosen(arguments.only, CASES), chosen(arguments.only, CONTESTS)
    wanted = {name for name in SECTIONS if not arguments.only or name in arguments.only}
    started = time.perf_counter()
    report: Record = {"machine": machine(arguments.device), "full": arguments.full}
    print("\n".join(tables.machine_lines(report["machine"])))
    for section in SECTIONS:
        any_case = {"row_loss": cases, "libraries": contests}.get(section, ())
        if section in wanted or any_case:
            began = time.perf_counter()
            report[section] = MEASURE[section](report, arguments, any_case)
            progress(f"{section}: {time.perf_counter() - began:.0f} s")
            print("\n" + "\n".join(tables.sections()[section](report)))
    report["seconds"] = round(time.perf_counter() - started, 1)
    print()
    for path in write(report, arguments.out / report["machine"]["folder"]):
        print(path)
    print(f"{report['seconds']:.0f} s in all\n")
    print("\n".join(summary_lines(report)))
    timed = [record for section in ("row_loss", "batch_size", "libraries") for record in report.get(section, [])]
    return int(any(record["rival"] == "fastlnl" and record["refused"] for record in timed))


def chosen(words: Sequence[str], registry: Iterable[Case] | Iterable[Contest]) -> list[Any]:
    """Cases or contests that are named, or whose primitive is; all where no word names any section or case."""
    section = "row_loss" if registry is CASES else "libraries"
    everything, names = list(registry), set(words) - set(SECTIONS)
    if not words or section in words:
        return everything
    return [c for c in everything if c.name.lower() in names or set(c.primitives) & names]


def length(arguments: argparse.Namespace) -> Length:
    """Of the run, with what was asked for in its place."""
    usual = FULL if arguments.full else QUICK
    if arguments.seconds:
        usual = usual._replace(seconds=arguments.seconds, contest_seconds=arguments.seconds / 2)
    return usual._replace(seeds=arguments.seeds or usual.seeds)


def row_loss(report: Record, arguments: argparse.Namespace, cases: Sequence[Case]) -> list[Record]:
    seconds, _, fewest, _ = length(arguments)
    copy = report["copy_bytes_per_second"] = copy_rate(arguments.device)
    usual = (*SHAPES, WIDEST)
    pairs = [(c, s) for c in cases for s in arguments.shapes or (usual if arguments.full else c.quick)]
    return [r for c, shape in pairs for r in measure(c, shape, arguments.device, seconds, copy, fewest, progress)]


def batch_size(report: Record, arguments: argparse.Namespace, _: Sequence[Any]) -> list[Record]:
    """P3 at every batch size; what the section before has measured is not measured again."""
    case = next(case for case in CASES if case.name == "P3")
    seconds, _, fewest, _ = length(arguments)
    here = [r for r in report.get("row_loss", []) if r["case"] == "P3" and r["shape"][1] in SWEPT_CLASSES]
    known = {tuple(r["shape"]) for r in here}
    shapes = [(b, classes) for classes in SWEPT_CLASSES for b in arguments.batches or SWEPT_BATCHES]
    if not (arguments.full or arguments.batches):
        shapes = list(QUICK_SHAPES)
    shapes = [shape for shape in shapes if shape not in known]
    here += [r for s in shapes for r in measure(case, s, arguments.device, seconds / 2, None, fewest, progress)]
    return sorted(here, key=lambda record: (record["shape"][1], record["shape"][0]))


def libraries(report: Record, arguments: argparse.Namespace, contests: Sequence[Contest]) -> list[Record]:
    if "copy_bytes_per_second" not in report:
        report["copy_bytes_per_second"] = copy_rate(arguments.device)
    if arguments.sizes:
        contests = [replace(c, sizes=tuple(s for s in arguments.sizes if len(s) == len(c.sizes[0]))) for c in contests]
    if arguments.only and "libraries" not in arguments.only:  # who asks for one by name gets it
        contests = [replace(contest, only_full=False) for contest in contests]
    full = arguments.full or bool(arguments.sizes)
    seconds, copy = length(arguments).contest_seconds, report["copy_bytes_per_second"]
    return against_libraries(list(contests), arguments.device, seconds, full, copy, progress)


def epoch(report: Record, arguments: argparse.Namespace, _: Sequence[Any]) -> list[Record]:
    report["state"] = state_bytes()
    return measure_epochs(arguments.full, arguments.device, progress)


def accuracy(report: Record, arguments: argparse.Namespace, _: Sequence[Any]) -> list[Record]:
    return time_to_accuracy(length(arguments).seeds, arguments.epochs, arguments.device, say=progress)


MEASURE = {
    "row_loss": row_loss,
    "batch_size": batch_size,
    "libraries": libraries,
    "step": lambda report, arguments, _: measure_steps(arguments.full, arguments.device, progress),
    "epoch": epoch,
    "accuracy": accuracy,
}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="under 5 minutes on 2 cores (the default)")
    length.add_argument("--full", action="store_true", help="all sizes, more repetitions, (16384, 1000)")
    parser.add_argument(
        "--only", type=words, default=(), metavar="A,B", help=f"sections ({', '.join(SECTIONS)}), cases or primitives"
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device, help="default: what this machine has")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--compare", type=Path, nargs=2, metavar="JSON", help="two saved runs; measures nothing")
    closer = parser.add_argument_group("to look closer")
    closer.add_argument("--shapes", type=size, nargs="+", metavar="BxC", help="such as 128x10 4096x1000")
    closer.add_argument("--sizes", type=size, nargs="+", metavar="N", help="of contests, such as 50000 or 50000x100")
    closer.add_argument("--batches", type=int, nargs="+", help="batch sizes of the section batch_size")
    closer.add_argument("--seconds", type=float, help="of timing per case and shape")
    closer.add_argument("--seeds", type=int, help="of the section accuracy, default: 2, with --full 5")
    closer.add_argument("--epochs", type=int, help="of the section accuracy, default: the recipe's")
    return parser


def words(text: str) -> tuple[str, ...]:
    """Names of sections, cases, contests or primitives."""
    names = tuple(text.lower().split(","))
    known = {*SECTIONS, *(name.lower() for c in (*CASES, *CONTESTS) for name in (c.name, *c.primitives))}
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"{','.join(unknown)} came, expected some of {', '.join(sorted(known))}")
    return names


def size(text: str) -> Shape:
    return tuple(int(number) for number in text.split("x"))  # type: ignore[return-value]


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
    lines = [*summary_lines(report), "", *tables.report_lines(report), "", *images]
    text.write_text("\n".join(lines) + "\n")
    return [data, text, *plots]


def progress(line: str) -> None:
    """To stderr, so that stdout is the report."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
