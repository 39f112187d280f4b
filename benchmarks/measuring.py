"""A case at a shape: every rival checked against float64, then all that passed timed in turns."""

from collections.abc import Callable
from typing import Any

from cases import Case, Errors, Rival, Shape, errors_of, truth_of
from libraries import why_unable
from timing import num_batches, peak_bytes, time_rivals

EXACT = 1e-6  # relative error that fastlnl may have where eager float32 has less
PLAUSIBLE = 1e-5  # relative error at which a rival does not compute the same thing

Record = dict[str, Any]


def measure(
    case: Case,
    shape: Shape,
    device: str,
    seconds: float,
    copy: float | None = None,
    fewest: int = 15,
    say: Callable[[str], None] = print,
) -> list[Record]:
    """A record per rival. One that is wrong, or is not to be had here, is refused: a reason in place of its times."""
    say(f"{case.name} at {shape[0]} x {shape[1]}")
    problem = case.inputs(shape, device, num_batches(case, shape, device))
    records: dict[str, Record] = {}
    able: dict[str, Rival] = {}
    truth = truth_of(problem, remembered=False)
    moved = truth_of(problem, remembered=True) if case.name == "P3" else truth
    for name in sorted(case.rivals, key="eager".__ne__):  # eager first, the others are held against its error
        record = records[name] = {"case": case.name, "shape": list(shape), "rival": name, "test": case.test}
        try:
            rival = case.rivals[name](problem)
            errors = errors_of(rival, problem, truth if rival.memory is None else moved)
        except Exception as error:  # torch.compile without a compiler, say: the others can still be measured
            record["refused"] = why_unable(error)
            continue
        record["errors"] = errors._asdict()
        record["refused"] = why_refused(name, errors, records["eager"].get("errors"))
        if record["refused"] is None:
            record["peak_bytes"] = peak_bytes(rival, problem.batches[0])
            able[name] = rival
    for clock, timings in time_rivals(able, problem, device, seconds, fewest).items():
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
