"""The record table: what the kept training runs reached, one row per data set, noise, network and method.

An entry needs the logs of three seeds at least. Written by `python benchmarks/train.py --record`.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

FEWEST = 3
LOG, SETTINGS = "log.jsonl", "run.json"
ROOT = Path(__file__).resolve().parents[1]
HEAD = f"""# Records

Written by `python benchmarks/train.py --record` from the logs beside it: test accuracy in % at the last epoch, mean and
sample standard deviation over seeds (noise, weights and order change with the seed), and mean seconds of training, the
sum of the epochs in the log. Machines did other work meanwhile, so seconds show the order of magnitude. An entry
has the logs of {FEWEST} seeds at least.

| method | data | labels | network, epochs | accuracy | n | seconds | device | torch | commit | log |
|---|---|---|---|--:|--:|--:|---|---|---|---|
"""

Record = dict[str, Any]


class Refused(Exception):
    """Why a group of runs is no record, in one sentence."""


def record_of(name: str, runs: list[Path]) -> Record:
    """The entry of one method in one setting, from the folders of its runs.

    Raises:
        Refused: there are too few seeds, or a log is missing, empty or shorter than the run.
    """
    settings = []
    for run in runs:
        if not (run / LOG).is_file() or not (run / LOG).read_text().strip():
            raise Refused(f"{run.parent.name}/{run.name} has no {LOG}; keep the run with its log, or remove it")
        settings.append(json.loads((run / SETTINGS).read_text()))
    seeds = sorted({s["seed"] for s in settings})
    if len(seeds) < FEWEST:
        raise Refused(
            f"{runs[0].parent.name}: {name} has {len(seeds)} seed{'s' * (len(seeds) != 1)} "
            f"({', '.join(map(str, seeds))}), expected {FEWEST} at least; train.py run --seeds makes more"
        )
    logs = [[json.loads(line) for line in (run / LOG).read_text().splitlines()] for run in runs]
    for run, log, s in zip(runs, logs, settings, strict=True):
        if len(log) != s["epochs"]:
            raise Refused(f"{run.parent.name}/{run.name} ends after epoch {len(log)} of {s['epochs']}; finish the run")
    accuracy, first = [100 * log[-1]["test_accuracy"] for log in logs], settings[0]
    return {
        "method": name,
        "data": first["dataset"],
        "labels": first["noise_mode"],
        "wrong": statistics.mean(100 * s["realised_noise"] for s in settings),
        "network": first["network"],
        "epochs": first["epochs"],
        "accuracy": statistics.mean(accuracy),
        "std": statistics.stdev(accuracy),
        "n": len(runs),
        "seeds": seeds,
        "seconds": statistics.mean(sum(line["seconds"] for line in log) for log in logs),
        "device": several(s["made_with"]["processor"] for s in settings),
        "torch": several(s["made_with"]["torch"] for s in settings),
        "commit": several(s["made_with"]["commit"] for s in settings),
        "logs": [str((run / LOG).resolve().relative_to(ROOT)) if run.resolve().is_relative_to(ROOT) else str(run / LOG)
                 for run in runs],
    }  # fmt: skip


def several(values: Any) -> str:
    """Each once, in the order they came."""
    return ", ".join(dict.fromkeys(values))


def write(groups: dict[tuple[str, str], list[Path]], folder: Path) -> tuple[list[Record], list[str]]:
    """records.md and records.json of all groups that are records; returns them, and why the others are none.

    Args:
        groups: folders of runs by setting and method.
    """
    records, refused = [], []
    for (_, name), runs in sorted(groups.items(), key=lambda item: (item[0][0], item[0][1] != "ce", item[0][1])):
        try:
            records.append(record_of(name, sorted(runs)))
        except Refused as reason:
            refused.append(str(reason))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "records.json").write_text(json.dumps(records, indent=1) + "\n")
    (folder / "records.md").write_text(HEAD + "".join(row(r) + "\n" for r in records))
    return records, refused


def row(record: Record) -> str:
    first = Path(record["logs"][0])
    log = f"[{first.parent.name}](training/{first.parent.parent.name}/{first.parent.name}/{LOG})"
    more = f" and {record['n'] - 1} more" if record["n"] > 1 else ""
    return (
        f"| {record['method']} | {record['data']} | {record['labels']}, {record['wrong']:.1f} % wrong | "
        f"{record['network']}, {record['epochs']} | {record['accuracy']:.2f} ± {record['std']:.2f} | {record['n']} | "
        f"{record['seconds']:,.0f} | {record['device']} | {record['torch']} | {record['commit']} | {log}{more} |"
    )
