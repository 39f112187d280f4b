"""What a run leaves behind in its folder: settings, one line per epoch, final metrics."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastlnl.checkpoint import atomic_open


def json_line(record: Mapping[str, Any]) -> str:
    """One JSON object on one line; what is undefined (NaN, infinity) becomes null, which every reader accepts."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(finite) + "\n"


class RunFolder:
    """The files of one run.

    run.json        settings, label noise with its C x C counts
    log.jsonl       one line per finished epoch
    metrics.csv     a header and one row, written when the run is complete
    checkpoint.pt   everything needed to continue
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / "checkpoint.pt"
        self.log = self.path / "log.jsonl"

    def start(self, settings: Mapping[str, Any], history: Iterable[Mapping[str, Any]]) -> None:
        """Write the settings and the log of the epochs in the checkpoint: lines of lost epochs go, none comes twice."""
        self.path.mkdir(parents=True, exist_ok=True)
        with atomic_open(self.path / "run.json", "w") as file:
            json.dump(settings, file, indent=1)
        with atomic_open(self.log, "w") as file:
            file.writelines(json_line(record) for record in history)

    def add(self, record: Mapping[str, Any]) -> None:
        """Append the line of one epoch."""
        with open(self.log, "a") as file:
            file.write(json_line(record))

    def finish(self, row: Mapping[str, Any]) -> None:
        """Write the final metrics as a CSV of one row."""
        with atomic_open(self.path / "metrics.csv", "w") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
            writer.writerow(row)

    def write_profile(self, table: str) -> None:
        """Write where the time of an epoch went."""
        with atomic_open(self.path / "profile.md", "w") as file:
            file.write(table)


@dataclass(frozen=True)
class Result:
    """What a run came to. Accuracies and metrics are shares in 0..1 on test data and training data respectively.

    last: test accuracy of the last epoch, the one to report. best: maximum over epochs, chosen on test data.
    last10: mean of the final ten epochs. seconds: training time without evaluation. metrics: those of the last epoch.
    history: one record per epoch, as in log.jsonl.
    """

    last: float
    best: float
    last10: float
    seconds: float
    metrics: dict[str, float]
    history: list[dict[str, Any]]


def summary(history: list[dict[str, Any]]) -> Result:
    """From the records of the epochs."""
    accuracy = [record["test_accuracy"] for record in history]
    fixed = ("epoch", "test_accuracy", "lr", "seconds", "noise", "noise_mode")
    return Result(
        last=accuracy[-1],
        best=max(accuracy),
        last10=sum(accuracy[-10:]) / len(accuracy[-10:]),
        seconds=sum(record["seconds"] for record in history),
        metrics={name: value for name, value in history[-1].items() if name not in fixed},
        history=history,
    )
