"""What the numbers of a report depend on: processor, threads, packages, commit, date."""

import datetime
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from provenance import commit

from fastlnl import backend

PACKAGES = ("fastlnl", "torch", "numba", "triton", "scikit-learn", "scipy", "cleanlab", "aum")


def machine(device: str) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "folder": "cpu" if gpu is None else gpu.lower().replace(" ", "-"),
        "cpu": cpu_model(),
        "vectors": vectors(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ["OMP_WAIT_POLICY"],
        "gpu": gpu,
        "backend": backend.implementation("row_loss", torch.empty(0, 1, device=device)).__module__.split(".")[-1],
        **{name: installed(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H%MZ"),
    }


def cpu_model() -> str:
    return from_cpuinfo("model name") or platform.processor() or platform.machine()


def vectors() -> str:
    """The widest vectors of the processor: two of one name may differ in them."""
    flags = from_cpuinfo("flags").split()
    found = [name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags]
    return found[0] if found else "no AVX2"


def from_cpuinfo(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def signature(machine: dict[str, Any]) -> str:
    """One line under a picture or over a summary."""
    where = machine["gpu"] or f"{machine['cpu']} ({machine.get('vectors', '?')}), {machine['threads']} threads"
    return f"{where}, torch {machine['torch']}, commit {machine['commit']}, {machine['date'][:10]}"
