"""Bytes that csrc's kernels move to and from memory, counted by Nsight Compute, beside the byte models.

`python benchmarks/gpu_bytes.py` runs itself under ncu, with cold caches; a kernel that moves more than its model fails.
"""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

METRICS = ("dram__bytes_read.sum", "dram__bytes_write.sum", "gpu__time_duration.sum")
SLACK = 1.15  # what the counters see beside the tensors: sectors at the ends of rows, ids, counters


class Call(NamedTuple):
    """One call, and what it has to read and write; what is written may stay in the L2 cache."""

    kernels: str  # a part of their names
    read: int
    written: int
    run: Callable[[], Any]


def row_loss(batch: int, classes: int, target: str, dtype: torch.dtype = torch.float32) -> Call:
    from fastlnl.ops.row_loss import LOSSES, TableTarget, new_error_word
    from fastlnl.ops.row_loss import row_loss as run

    z = torch.randn(batch, classes, device="cuda", dtype=dtype)
    label = torch.randint(classes, (batch,), device="cuda")
    given: dict[str, Any] = {"errors": new_error_word("cuda")}
    logits, rows = batch * classes * z.element_size(), batch * classes * 4
    read, written, loss = logits, logits, LOSSES["cross_entropy"]
    if target == "dense":
        given["target"], loss = torch.rand(batch, classes, device="cuda"), LOSSES["soft_cross_entropy"]
        read += rows
    if target == "memory":
        table = torch.rand(2 * batch, classes, device="cuda")
        given |= {
            "memory": TableTarget(table, 0.9, 0.9, True),
            "index": torch.randperm(2 * batch, device="cuda")[:batch],
        }
        read, written, loss = read + rows, written + rows, LOSSES["alr"]
    return Call("rows_kernel", read, written, lambda: run(z, label, loss, loss.parameters(), **given))


def two_views(batch: int, classes: int) -> Call:
    from fastlnl.ops.row_loss import new_error_word
    from fastlnl.ops.two_view_loss import two_view_loss

    views, label = torch.randn(2, batch, classes, device="cuda"), torch.randint(classes, (batch,), device="cuda")
    count, table = torch.zeros(batch, dtype=torch.int32, device="cuda"), torch.rand(1, 8, 2, device="cuda")
    index, errors = torch.randperm(batch, device="cuda"), new_error_word("cuda")
    both = 2 * 4 * batch * classes
    return Call("two_view_kernel", both, both,
                lambda: two_view_loss(*views, label, index, count, table, errors=errors))  # fmt: skip


def histogram(n: int) -> Call:
    from fastlnl.ops.value_histogram import value_histogram

    x = torch.rand(n, device="cuda")
    return Call("range_kernel", 4 * n, 0, lambda: value_histogram(x))


def posterior(n: int) -> Call:
    from fastlnl.ops.mixture_posterior import mixture_posterior

    x, odds = torch.rand(n, device="cuda"), torch.rand(1, 8, device="cuda").double()
    return Call("mixture_posterior_kernel", 4 * n, 4 * n, lambda: mixture_posterior(x, odds))


CALLS = {
    **{
        f"row_loss {batch}x{classes} {target}": (row_loss, batch, classes, target)
        for batch, classes in ((4096, 1000), (16384, 1000), (512, 21841))
        for target in ("none", "dense", "memory")
    },
    "row_loss 16384x1000 none bfloat16": (row_loss, 16384, 1000, "none", torch.bfloat16),
    "two_view_loss 4096x1000": (two_views, 4096, 1000),
    "value_histogram 14000000": (histogram, 14_000_000),
    "mixture_posterior 14000000": (posterior, 14_000_000),
}


def call_of(name: str) -> Call:
    make, *sizes = CALLS[name]
    return make(*sizes)


def copy_rate(nbytes: int = 1 << 30) -> float:
    """Bytes a second of a large copy, read and written ones both counted."""
    source = torch.empty(nbytes, dtype=torch.uint8, device="cuda")
    copy, times = torch.empty_like(source), []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        copy.copy_(source)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return 2 * nbytes / sorted(times)[len(times) // 2]


def counted(text: str, kernels: str) -> dict[str, float]:
    """Sums over the kernels, from `ncu --csv --page raw --print-units base`; the row under the head holds units."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    rows = [row for row in csv.DictReader(lines) if kernels in row["Kernel Name"]]
    return {metric: sum(float(row[metric].replace(",", "")) for row in rows) for metric in METRICS}


def verdict(call: Call, found: dict[str, float]) -> str:
    read, written, _ = (found[metric] for metric in METRICS)
    if not call.read <= SLACK * read:
        return "reads less than it has to: another kernel was counted"
    if read > SLACK * call.read:
        return f"reads {read / call.read:.2f} of its model"
    return (
        "ok"
        if written <= SLACK * call.written + (1 << 20)
        else f"writes {written / max(call.written, 1):.2f} of its model"
    )


def main() -> int:
    if not torch.cuda.is_available():
        print("no CUDA device is visible to torch: nothing was counted", file=sys.stderr)
        return 2
    from fastlnl.backend import use_backend

    if len(sys.argv) == 2:  # under ncu
        with use_backend("cuda"):
            call_of(sys.argv[1]).run()
            torch.cuda.synchronize()
        return 0
    failed, rate = False, copy_rate()
    for name in CALLS:
        command = ["ncu", "--csv", "--page", "raw", "--print-units", "base", "--metrics", ",".join(METRICS)]
        done = subprocess.run([*command, sys.executable, __file__, name], capture_output=True, text=True)
        if done.returncode != 0:
            print(f"ncu failed on {name}:\n{done.stdout}{done.stderr}")
            return 1
        call = call_of(name)
        found = counted(done.stdout, call.kernels)
        said = verdict(call, found)
        failed |= said != "ok"
        share = (call.read + call.written) / rate / (found[METRICS[2]] * 1e-9)
        numbers = {metric: int(found[metric]) for metric in METRICS} | {"of copy rate": round(share, 3)}
        print(f"{name:34} {said:40} {json.dumps(numbers)}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
