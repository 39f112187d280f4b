"""What a run leaves behind in its folder: settings, one line per epoch, final metrics."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
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
