"""What the readers share: finding files, and a split for data sets that come without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastlnl.philox import permutation


def data_file(root: Path, name: str) -> Path:
    """The path of a data file.

    Raises:
        FileNotFoundError: it is not there.
    """
    if not (root / name).exists():
        raise FileNotFoundError(
            f"{root / name} is missing: set FASTLNL_DATA (or root) to the folder that holds {name}, "
            f"or use the data set 'digits', which needs no files"
        )
    return root / name


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file by name, none of them pickled."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def held_out(name: str, label: Tensor, every: int) -> Tensor:
    """(N,) bool, the test samples of a fixed split: every `every`-th in order of (class, random number).

    The random numbers depend on `name` alone. Each class is within one sample of its share.
    """
    order = permutation(0, f"{name}/split", len(label))
    order = order[label[order].argsort(stable=True)]
    is_test = torch.zeros(len(label), dtype=torch.bool)
    is_test[order[::every]] = True
    return is_test
