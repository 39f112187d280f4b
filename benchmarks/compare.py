"""Two saved runs side by side: `python benchmarks/run.py --compare before.json after.json`."""

from typing import Any

from machine import signature
from summary import place
from tables import milli, table

Record = dict[str, Any]

MACHINE = ("cpu", "vectors", "cores", "threads", "gpu", "omp_wait_policy", "backend")
SECTIONS = ("row_loss", "batch_size", "libraries")


def compare_lines(first: Record, second: Record) -> list[str]:
    """A row per case, shape and rival that both runs have timed; "B / A" above one is slower in the second."""
    machines = [report["machine"] for report in (first, second)]
    lines = ["# Two runs", "", f"- A: {signature(machines[0])}", f"- B: {signature(machines[1])}"]
    differ = [name for name in MACHINE if machines[0].get(name) != machines[1].get(name)]
    if differ:
        told = "; ".join(f"{name}: {machines[0].get(name)} and {machines[1].get(name)}" for name in differ)
        lines += ["", f"**The machines differ ({told}): ratios compare machines as well as code.**"]
    elif not all(machine.get("vectors") for machine in machines):
        lines += ["", "**A run does not say how wide its vectors are: two processors of one name may differ.**"]
    packages = [name for name in ("torch", "numba", "triton") if machines[0].get(name) != machines[1].get(name)]
    if packages:
        told = ", ".join(f"{name} {machines[0].get(name)} and {machines[1].get(name)}" for name in packages)
        lines += ["", f"**Packages differ: {told}.**"]
    times = [timed(report) for report in (first, second)]
    rows = [compared(key, times[0][key], times[1][key]) for key in times[0] if key in times[1]]
    lines += ["", *(table(rows) if rows else ["No case was timed in both."])]
    alone = [len(mine.keys() - other.keys()) for mine, other in (times, times[::-1])]
    return [*lines, "", f"Timed in A alone: {alone[0]}, in B alone: {alone[1]}."]


def timed(report: Record) -> dict[tuple[Any, ...], Record]:
    """Records with a time, by case, shape and rival; of a shape that two sections have the first."""
    found: dict[tuple[Any, ...], Record] = {}
    for section in SECTIONS:
        for record in report.get(section, []):
            if "median" in record:
                found.setdefault((*place(record), record["rival"]), record)
    return found


def compared(key: tuple[Any, ...], a: Record, b: Record) -> Record:
    name, *numbers, rival = key
    apart = a["high"] < b["low"] or b["high"] < a["low"]
    return {
        "case": name,
        "size": " x ".join(f"{n:,}" for n in numbers),
        "rival": rival,
        "A, ms": milli(a["median"]),
        "B, ms": milli(b["median"]),
        "B / A": f"{b['median'] / a['median']:.2f}",
        "": "" if apart else "quartiles overlap",
    }
