"""One screen: what is faster, by how much, against what, and where fastlnl is slower."""

import statistics
import textwrap
from collections.abc import Iterable
from typing import Any

from machine import signature
from tables import micro, milli, table

Record = dict[str, Any]

WIDTH = 118
LIBRARIES = (("scikit-learn",), ("cleanlab",), ("aum",), ("scipy",), ("torch.topk", "torch.sort"))  # a row each
WORDS = {"P1": "cross-entropy", "P2": "soft cross-entropy", "P3": "ALR, label memory"}
SHOWN_SLOWER = 8


def summary_lines(report: Record) -> list[str]:
    measured = [r for section in ("row_loss", "libraries") for r in report.get(section, []) if not r["refused"]]
    compared = [pair for pair in pairs(measured) if not pair[1].get("surcharge")]
    lines = [f"## In short: {signature(report['machine'])}", ""]
    rows = [*loss_rows(report), *library_rows(report), *step_rows(report), *epoch_rows(report), *accuracy_rows(report)]
    if rows:
        lines += [*table(rows), ""]
    lines += verdict(compared)
    return lines


def pairs(records: Iterable[Record]) -> list[tuple[Record, Record]]:
    """fastlnl's record and each rival's at the same place."""
    records = list(records)
    ours = {place(r): r for r in records if r["rival"] == "fastlnl"}
    return [(ours[place(r)], r) for r in records if r["rival"] != "fastlnl" and place(r) in ours]


def place(record: Record) -> tuple[Any, ...]:
    return record.get("case") or record["contest"], *(record.get("shape") or record["size"])


def loss_rows(report: Record) -> list[Record]:
    """A row per shape of P3, one for each of the others."""
    found = pairs(r for r in report.get("row_loss", []) if not r["refused"])
    rows = []
    for case in dict.fromkeys(r["case"] for _, r in found):
        mine = [(ours, theirs) for ours, theirs in found if theirs["case"] == case]
        if case != "P3":
            rows.append(row(WORDS.get(case, case), "all shapes", "", ranges(mine)))
            continue
        for shape in dict.fromkeys(tuple(ours["shape"]) for ours, _ in mine):
            here = [(ours, theirs) for ours, theirs in mine if tuple(ours["shape"]) == shape]
            rows.append(row(WORDS[case], " x ".join(map(str, shape)), took(here[0][0]), ranges(here)))
    return rows


def library_rows(report: Record) -> list[Record]:
    """A row per library, at the largest size; one for all that is compared with torch calls; one for a surcharge."""
    found = pairs(r for r in report.get("libraries", []) if not r["refused"])
    rows = []
    for libraries in LIBRARIES:
        mine = [(ours, theirs) for ours, theirs in found if theirs["rival"] in libraries]
        if not mine:
            continue
        ours, _ = max(mine, key=lambda pair: pair[0]["size"][0])
        told = ranges([pair for pair in mine if pair[0] is ours])
        if len({place(ours) for ours, _ in mine}) > 1:
            told += f" (all {len(mine)}: {spread(theirs['speedup'] for _, theirs in mine)})"
        rows.append(row(ours["contest"], " x ".join(f"{n:,}" for n in ours["size"]), took(ours), told))
    known = {name for libraries in LIBRARIES for name in libraries}
    plain = [theirs for _, theirs in found if theirs["rival"] not in known and not theirs["surcharge"]]
    if plain:
        names = len({r["contest"] for r in plain})
        middle = statistics.median(r["speedup"] for r in plain)
        told = f"the same in torch calls {spread(r['speedup'] for r in plain)}, median {precise(middle)}"
        rows.append(row(f"{names} other tasks", f"{len(plain)} comparisons", "", told))
    extra = [(ours, theirs) for ours, theirs in found if theirs["surcharge"]]
    if extra:
        told = ", ".join(f"{100 / r['speedup'] - 100:+.0f} % at {' x '.join(map(str, r['size']))}" for _, r in extra)
        rows.append(row("dynamics beside ALR", "", "", f"add {told}"))
    return rows


def step_rows(report: Record) -> list[Record]:
    """A row per network: per cent of a step of cross-entropy that bookkeeping adds, by fastlnl and otherwise."""
    rows = []
    for network in dict.fromkeys(r["network"] for r in report.get("step", [])):
        mine = [r for r in report["step"] if r["network"] == network and not r["refused"]]
        ours, plain = ([r for r in mine if r["by"] == by] for by in ("fastlnl", "research code"))
        if not ours or not plain:
            continue
        each = ", ".join(f"{r['method']} {share(r)}" for r in ours if r["method"] in ("alr", "ido"))
        most = max(ours, key=lambda r: r["extra_percent"])
        low, high = (f(plain, key=lambda r: r["extra_percent"]) for f in (min, max))
        told = f"adds {each}, at most {share(most)} % ({most['method']}); research code {share(low)} to {share(high)} %"
        where = f"batch {ours[0]['batch']}, {milli(ours[0]['step']['median'])} ms"
        rows.append(row(f"step of {ours[0]['title'].split(',')[0]}", where, "", told))
    return rows


def share(record: Record) -> str:
    percent = record["extra_percent"]
    return f"{percent:+.0f}" if abs(percent) >= 10 else f"{percent:+.1f}" if abs(percent) >= 1 else f"{percent:+.2f}"


def epoch_rows(report: Record) -> list[Record]:
    """The largest number of samples at which there is a rival."""
    records = [r for r in report.get("epoch", []) if not r["refused"]]
    rivals = [r for r in records if r["by"] != "fastlnl"]
    if not rivals:
        return []
    samples = max(r["samples"] for r in rivals)
    total = {r["by"]: r["score"] + r["split"] for r in records if r["samples"] == samples}
    told = ", ".join(f"{by} {precise(total[by] / total['fastlnl'])}" for by in total if by != "fastlnl")
    return [row("score and split all samples", f"{samples:,}", f"{milli(total['fastlnl'])} ms", told)]


def accuracy_rows(report: Record) -> list[Record]:
    records = report.get("accuracy", [])
    if not records:
        return []
    told = ", ".join(f"{r['method']} {r['last']:.1f} +- {r['last_std']:.1f} % in {r['seconds']:.1f} s" for r in records)
    first = records[0]
    told += f" ({first['noise']}, n = {first['seeds']})"
    return [row(f"accuracy, {first['dataset']}", f"{first['epochs']} epochs", "", told)]


def row(what: str, at: str, fastlnl: str, told: str) -> Record:
    return {"what": what, "at": at, "fastlnl": fastlnl, "times as fast as": told}


def took(record: Record) -> str:
    return f"{micro(record['median'])} us" if record["median"] < 1e-3 else f"{milli(record['median'])} ms"


def ranges(found: list[tuple[Record, Record]]) -> str:
    """Every rival with its ratio, or with the lowest and highest of several."""
    rivals = dict.fromkeys(theirs["rival"] for _, theirs in found)
    return ", ".join(f"{name} {spread(r['speedup'] for _, r in found if r['rival'] == name)}" for name in rivals)


def spread(ratios: Iterable[float]) -> str:
    low, *_, high = sorted(2 * list(ratios))
    return precise(low) if low == high else f"{precise(low)[:-1]} to {precise(high)}"


def precise(ratio: float) -> str:
    """Two digits."""
    return f"{ratio:,.0f}x" if ratio >= 9.95 else f"{ratio:.1f}x" if ratio >= 0.995 else f"{ratio:.2f}x"


def verdict(compared: list[tuple[Record, Record]]) -> list[str]:
    """How often faster, undecided, slower; where slower, by name, the worst first."""
    if not compared:
        return []
    faster = sum(ours["high"] < theirs["low"] for ours, theirs in compared)
    clearly = sum(ours["low"] > theirs["high"] for ours, theirs in compared)
    text = (
        f"Faster in {faster} of {len(compared)} comparisons, slower in {clearly}, undecided (quartiles overlap) in "
        f"{len(compared) - faster - clearly}. Medians of rivals that take turns in one process, answers checked first."
    )
    slower = sorted((theirs for _, theirs in compared if theirs["speedup"] < 1), key=lambda r: r["speedup"])
    where = [f"{label(r)} against {r['rival']} ({r['speedup']:.2f}x)" for r in slower[:SHOWN_SLOWER]]
    more = f", and {len(slower) - SHOWN_SLOWER} more" if len(slower) > SHOWN_SLOWER else ""
    told = f"Slower: {', '.join(where)}{more}." if where else "Slower: nowhere here."
    return [*textwrap.wrap(text, WIDTH), *textwrap.wrap(told, WIDTH)]


def label(record: Record) -> str:
    name, *numbers = place(record)
    return f"{name} {' x '.join(map(str, numbers))}"
