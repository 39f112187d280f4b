"""Checkpoints that are whole or not there: atomic files and the state of every random generator."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from fastlnl.errors import StateError


@contextmanager
def atomic_open(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open `path` for writing so that, whenever the process dies, the old or the new file is there whole.

    The bytes go to `.<name>.tmp` in the same folder (a rename across file systems is not atomic), are forced to the
    disk, and take the place of `path` in one step. A left-over temporary file of a killed run is simply overwritten.
    One process at a time may write a path.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)
    if hasattr(os, "O_DIRECTORY"):  # without this the rename itself may be lost when the power goes
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(state: Mapping[str, Any], path: str | Path) -> None:
    """Write `state` (tensors, numbers, strings and containers of them) to `path` atomically.

    Raises:
        OSError: the disk is full, say; the checkpoint that was there before is there still.
    """
    with atomic_open(path) as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:  # torch's writer, on its way out of what the disk said
            if not isinstance(reason := error.__context__, OSError):
                raise
            raise OSError(reason.errno, f"{reason.strerror}, checkpoint not written", str(path)) from error


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; only tensors and plain Python values are accepted, never code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; start the run without resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read as a checkpoint ({reason}); delete it to start again") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a checkpoint written by fastlnl")
    return state


def check_same_run(path: str | Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse to continue a run with other data or settings.

    Args:
        path: the checkpoint, for the message.
        saved, current: the settings in the checkpoint and those of the run that wants to continue it.

    Raises:
        StateError: names every setting that differs, with both values.
    """
    differs = [
        f"{name} was {saved.get(name)!r} and is now {current.get(name)!r}"
        for name in dict.fromkeys((*saved, *current))
        if saved.get(name) != current.get(name)
    ]
    if differs:
        raise StateError(
            f"{path} belongs to another run: {'; '.join(differs)}. Resume with the settings it was started with, "
            "or choose another output folder."
        )


def rng_state() -> dict[str, Any]:
    """State of the global generators of Python, NumPy and torch (every CUDA device), in plain values."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put back what `rng_state` returned; CUDA states only where the same number of devices is there."""
    random.setstate(state["python"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
