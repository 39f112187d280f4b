"""A label memory that no dense table could be: topk:16 for 1,000,000 samples of 21,841 classes, in how much memory?

    python benchmarks/large_table.py

Creates it, moves it in 1,000 batches of 512 through ALR (forward and backward), writes a checkpoint, and prints the
highest resident memory of the process. Logits come batch by batch from a generator. The result goes to
benchmarks/results/large_table.json. Linux only, for the peak is read from the kernel.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from provenance import commit

from fastlnl import checkpoint
from fastlnl.losses import ALR

RESULT = Path(__file__).parent / "results" / "large_table.json"


def peak_mib() -> float:
    """Highest resident memory of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def measure(samples: int, classes: int, storage: str, batches: int, batch: int) -> dict[str, Any]:
    """Peak memory after each stage in MiB, seconds, bytes a sample and of the file."""
    found: dict[str, Any] = {"samples": samples, "classes": classes, "storage": storage, "peak_mib": {}}
    found |= {"batches": batches, "batch": batch, "commit": commit(), "torch": torch.__version__}
    found["peak_mib"]["imports"] = peak_mib()
    random = torch.Generator().manual_seed(0)
    label = torch.randint(classes, (samples,), generator=random, dtype=torch.int32)
    criterion = ALR(samples, classes, label, storage=storage)
    found["bytes_per_sample"] = criterion.memory.bytes_per_sample
    found["peak_mib"]["created"] = peak_mib()
    started = time.perf_counter()
    logits = torch.empty(batch, classes, requires_grad=True)
    for _ in range(batches):
        index = torch.randint(samples, (batch,), generator=random)
        with torch.no_grad():
            logits.normal_(0, 3, generator=random)
        logits.grad = None
        criterion(logits, label[index], index).backward()
    criterion.end_epoch()
    found["seconds"] = round(time.perf_counter() - started, 1)
    found["peak_mib"]["updated"] = peak_mib()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save({"criterion": criterion.state_dict()}, Path(folder) / "checkpoint.pt")
        found["file_mib"] = round((Path(folder) / "checkpoint.pt").stat().st_size / 2**20, 1)
    found["peak_mib"]["saved"] = peak_mib()
    found["dense_float32_mib"] = round(samples * classes * 4 / 2**20)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=21_841)
    parser.add_argument("--storage", default="topk:16")
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = vars(parser.parse_args())
    out = arguments.pop("out")
    result = measure(**arguments)
    out.write_text(json.dumps(result, indent=1) + "\n")
    json.dump(result, sys.stdout, indent=1)
    print()
