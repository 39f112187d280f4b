"""Tables of the sections `step` and `epoch`."""

from typing import Any

from tables import milli, table, times

Record = dict[str, Any]

PROMISED, LIMIT = ("alr", "ido", "crema"), 1.0  # per cent of a step of ResNet-18


def step_lines(report: Record) -> list[str]:
    """One table per network."""
    lines = [
        "## What a method adds to a training step",
        "",
        "A step of cross-entropy is timed as a whole. What a method adds lies between logits and their gradient; it is",
        "timed alone, with cold caches, in turns with cross-entropy's, and divided by the step. Work of once an epoch",
        "(split, history; N = 50,000) is shared out over the epoch's steps and is part of it. Whole steps beside it:",
        "medians in turns, eager and as one region of torch.compile, against cross-entropy in the same turns. Launches",
        "and host reads are counted from the logits to their gradient, as Triton kernels and torch operators; peak is",
        "what that allocates. Forward passes of its own are no bookkeeping: IDO is compared with CE of two views.",
    ]
    for network in dict.fromkeys(r["network"] for r in report["step"]):
        mine = [r for r in report["step"] if r["network"] == network]
        first = mine[0]
        lines += ["", f"### {first['title']}, batch {first['batch']}, C = {first['classes']}", ""]
        lines += table(map(step_row, sorted(mine, key=lambda r: order(r, mine))))
    return lines


def order(record: Record, records: list[Record]) -> int:
    """Both ways of a method side by side."""
    methods = list(dict.fromkeys(r["method"] for r in records))
    return 3 * methods.index(record["method"]) + ("torch", "fastlnl", "research code").index(record["by"])


def step_row(record: Record) -> Record:
    where = {"method": record["method"], "by": record["by"]}
    if record["refused"]:
        return where | {"adds, us": f"no number: {record['refused']}"}
    counts = {"launches": str(record["launches"]), "reads": str(record["reads"])}
    if record["by"] == "torch":
        return where | {"step, ms": milli(record["step"]["median"])} | counts | peak(record)
    return {
        **where,
        "adds, us": f"{1e6 * record['extra']:,.0f}",
        "of the step": f"{record['extra_percent']:+.3g} %",
        "wanted": wanted(record),
        "once an epoch, ms": milli(record["epoch_seconds"]) if record["epoch_seconds"] else "",
        **counts,
        "state MB": f"{record['state_bytes'] / 1e6:.2f}",
        **peak(record),
        "whole steps": percent(record.get("whole"), record["step"]),
        "compiled": percent(record["compiled"], record["compiled_base"]),
        "CUDA graph": percent(record["graph"], record["graph_base"]),
    }


def wanted(record: Record) -> str:
    """A promise about ResNet-18."""
    if record["network"] != "resnet18" or record["by"] != "fastlnl" or record["method"] not in PROMISED:
        return ""
    return f"<= {LIMIT:g} % {'met' if record['extra_percent'] <= LIMIT else 'MISSED'}"


def peak(record: Record) -> Record:
    return {"peak KiB": f"{record['peak_bytes'] / 1024:,.1f}"}


def percent(method: Record | None, base: Record | None) -> str:
    return f"{100 * method['median'] / base['median'] - 100:+.1f} %" if method and base else ""


def epoch_lines(report: Record) -> list[str]:
    lines = [
        "## The end of an epoch: every sample scored, all losses split in two",
        "",
        "Scoring enters each sample's loss from logits that are there (C = 10, batches of 4,096); the split is two",
        "Gaussians and everybody's posterior. Best of three passes; rivals, which take longer, once.",
        "",
        *table(epoch_row(record, report["epoch"]) for record in report["epoch"]),
        "",
        "### What is kept of the samples, against an N x C table in float32",
        "",
        "From the buffers themselves, a sample's bytes times N. CREMA keeps its table in the format before its column",
        "where K of topk fits (uint8 at C = 10).",
        "",
        *table(state_row(record) for record in report["state"]),
    ]
    return lines


def epoch_row(record: Record, records: list[Record]) -> Record:
    where = {"N": f"{record['samples']:,}", "by": record["by"]}
    if record["refused"]:
        return where | {"score, ms": f"no number: {record['refused']}"}
    total = record["score"] + record["split"]
    ours = next(r for r in records if r["samples"] == record["samples"])
    ratio = "" if record is ours else f"{times(total / (ours['score'] + ours['split']))} faster"
    return {
        **where,
        "score, ms": milli(record["score"]),
        "split, ms": milli(record["split"]),
        "ns per sample": f"{1e9 * total / record['samples']:,.1f}",
        "fastlnl is": ratio,
        "difference": record["difference"],
    }


def state_row(record: Record) -> Record:
    samples, given = record["samples"], ("data", "samples", "classes", "dense")
    kept = {name: amount(samples * value) for name, value in record.items() if name not in given and value}
    kept = {name: kept.get(name, "") for name in record if name not in given}
    name = f"{record['data']}, {samples:,} x {record['classes']:,}"
    return {"data": name, "N x C float32": amount(samples * record["dense"]), **kept}


def amount(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
