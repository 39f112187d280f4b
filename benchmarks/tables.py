"""The report as Markdown tables that are aligned in a terminal too."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cases import CASES
from libraries import CONTESTS
from machine import PACKAGES

Record = dict[str, Any]

TO_THE_LEFT = {
    *("B x C", "N x C", "N", "case", "size", "rival", "method", "by", "data", "wanted", "difference", ""),
    *("what", "at", "times as fast as"),  # of the summary
}


def report_lines(report: Record) -> list[str]:
    lines = machine_lines(report["machine"])
    for section, write in sections().items():
        if section in report:
            lines += ["", *write(report)]
    return lines


def sections() -> dict[str, Callable[[Record], list[str]]]:
    """What writes the tables of each section, in the order of the report."""
    from step_tables import epoch_lines, step_lines  # they need the tables here

    return {
        "row_loss": row_loss_lines,
        "batch_size": batch_size_lines,
        "libraries": libraries_lines,
        "step": step_lines,
        "epoch": epoch_lines,
        "accuracy": accuracy_lines,
    }


def machine_lines(machine: Record) -> list[str]:
    packages = [f"{name} {machine[name]}" for name in PACKAGES if machine.get(name)]
    return [
        f"# fastlnl benchmarks, {machine['date']}, commit {machine['commit']}",
        "",
        *([f"- GPU: {machine['gpu']}, CUDA {machine['cuda']}"] if machine["gpu"] else []),
        f"- CPU: {machine['cpu']} ({machine.get('vectors', '?')}), {machine['cores']} cores, "
        f"{machine['threads']} threads, OMP_WAIT_POLICY={machine['omp_wait_policy']}",
        f"- {', '.join(packages)}, Python {machine['python']}",
        f"- fastlnl runs on {machine['backend']}",
    ]


def row_loss_lines(report: Record) -> list[str]:
    """One table per case."""
    lines = [
        "## Loss and gradient of a batch, forward and backward through autograd, float32",
        "",
        "Medians and quartiles of rivals that take turns in one process, on inputs that take turns too. Errors are",
        "norm over norm against float64. Peak is what a step allocates, gradient included. GB/s are the bytes of the",
        f"byte model over the time; a large copy runs at {giga(report['copy_bytes_per_second'])} GB/s in this process.",
    ]
    for case in CASES:
        records = [record for record in report["row_loss"] if record["case"] == case.name]
        if records:
            lines += ["", f"### {case.name}: {case.title}", "", *table(map(row_loss_row, records))]
            lines += ["", f"Green before this table counts: `{case.test}`."]
    return lines


def row_loss_row(record: Record) -> Record:
    where = {"B x C": by(record["shape"]), "rival": record["rival"]}
    if record["refused"]:
        return where | {"us": f"no number: {record['refused']}"}
    fastlnl = record["rival"] == "fastlnl"
    clocks = {name: micro(clock["median"]) for name, clock in record["clocks"].items() if name in ("warm", "host")}
    return {
        **where,
        "us": micro(record["median"]),
        "quartiles": f"{micro(record['low'])} .. {micro(record['high'])}",
        **clocks,
        "fastlnl is": "" if fastlnl or "speedup" not in record else f"{record['speedup']:.2f}x",
        "wanted": wanted(record),
        "error of loss": f"{record['errors']['loss']:.0e}",
        "of gradient": f"{record['errors']['dlogits']:.0e}",
        "peak MiB": f"{record['peak_bytes'] / 2**20:.2f}",
        "GB/s": giga(record["bytes_per_second"]),
        "of copy": f"{100 * record['of_copy']:.0f} %" if record["of_copy"] else "",
    }


def wanted(record: Record) -> str:
    if record["target"] is None or "speedup" not in record or "wall" not in record["clocks"]:
        return ""
    return at_least(record["target"], record["speedup"])


def at_least(target: float, speedup: float) -> str:
    return f">= {target:g}x {'met' if speedup >= target else 'MISSED'}"


def batch_size_lines(report: Record) -> list[str]:
    """Rivals side by side, a row per shape."""
    rows: dict[str, Record] = {}
    for record in report["batch_size"]:
        row = rows.setdefault(by(record["shape"]), {"B x C": by(record["shape"])})
        row[f"{record['rival']}, us"] = "no number" if record["refused"] else micro(record["median"])
    return ["## P3 against batch size", "", *table(rows.values())]


def libraries_lines(report: Record) -> list[str]:
    """One table per contest."""
    lines = [
        "## Against the libraries people use",
        "",
        "Medians and quartiles of rivals that take turns in one process, on the same inputs. Answers are compared",
        "before anything is timed; the difference is fastlnl's answer beside the rival's, the error that against",
        "float64, norm over norm. Peak is what a call allocates, GB/s the bytes of the byte model over the time.",
    ]
    for contest in CONTESTS:
        records = [record for record in report["libraries"] if record["contest"] == contest.name]
        if records:
            rows = [{contest.axes: " x ".join(f"{n:,}" for n in r["size"])} | library_row(r) for r in records]
            lines += ["", f"### {contest.name}: {contest.title}", "", *table(rows)]
            lines += ["", f"Green before this table counts: `{contest.test}`."]
    return lines


def library_row(record: Record) -> Record:
    if record["refused"]:
        return {"rival": record["rival"], "ms": f"no number: {record['refused']}"}
    return {
        "rival": record["rival"],
        "ms": milli(record["median"]),
        "quartiles": f"{milli(record['low'])} .. {milli(record['high'])}",
        "samples": str(record["samples"]),
        "ns per sample": f"{1e9 * record['seconds_per_sample']:,.1f}",
        **({} if record["rival"] == "fastlnl" else compared(record)),
        "difference": record.get("difference", ""),
        "error": f"{record['error']:.0e}" if "error" in record else "",
        "peak MiB": f"{record['peak_bytes'] / 2**20:.2f}",
        "GB/s": giga(record["bytes_per_second"]),
        "of copy": f"{100 * record['of_copy']:.0f} %" if record["of_copy"] else "",
    }


def compared(record: Record) -> Record:
    target, speedup = record["target"], record["speedup"]
    if not record["surcharge"]:
        return {"fastlnl is": f"{times(speedup)} faster", "wanted": "" if target is None else at_least(target, speedup)}
    added = 100 / speedup - 100
    most = "" if target is None else f"<= {target:g} % {'met' if added <= target else 'MISSED'}"
    return {"fastlnl adds": f"{added:+.1f} %", "wanted": most}


def accuracy_lines(report: Record) -> list[str]:
    first = report["accuracy"][0]
    rows = [
        {
            "method": record["method"],
            "last epoch, %": f"{record['last']:.2f} +- {record['last_std']:.2f}",
            "best, %": f"{record['best']:.2f}",
            "seconds": f"{record['seconds']:.1f}",
            "labels wrong, %": f"{record['realised_noise']:.2f}",
        }
        for record in report["accuracy"]
    ]
    return [
        f"## Time to accuracy: {first['dataset']}, {first['noise']}, {first['epochs']} epochs",
        "",
        f"Test accuracy, mean and standard deviation, n = {first['seeds']}; seconds of training of a run. The best "
        "epoch is chosen on test data and is no result.",
        "",
        *table(rows),
    ]


def table(rows: Iterable[Record]) -> list[str]:
    """Rows as a Markdown table in columns; numbers to the right; columns that are empty throughout are left out."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row if any(r.get(name) for r in rows)))
    cells = [names, *([row.get(name, "") for name in names] for row in rows)]
    # A sentence in place of a number may be wider than its column.
    width = [max(len(line[i]) for line in cells if not line[i].startswith("no number:")) for i in range(len(names))]
    left = [name in TO_THE_LEFT for name in names]
    rule = [("-" * w) if to_left else "-" * (w - 1) + ":" for w, to_left in zip(width, left, strict=True)]
    return ["| " + " | ".join(aligned(line, width, left)) + " |" for line in (cells[0], rule, *cells[1:])]


def aligned(line: Sequence[str], width: Sequence[int], left: Sequence[bool]) -> list[str]:
    return [c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(line, width, left, strict=True)]


def by(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def micro(seconds: float) -> str:
    us = 1e6 * seconds
    return f"{us:,.1f}" if us < 1000 else f"{us:,.0f}"


def milli(seconds: float) -> str:
    ms = 1e3 * seconds
    return f"{ms:,.3f}" if ms < 10 else f"{ms:,.1f}"


def times(ratio: float) -> str:
    return f"{ratio:,.0f}x" if ratio >= 100 else f"{ratio:.1f}x"


def giga(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:,.1f}" if bytes_per_second < 1e11 else f"{bytes_per_second / 1e9:,.0f}"
