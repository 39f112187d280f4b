"""Here the `device` fixture means: csrc's kernels, run on the CPU by the emulator."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "ops")]


def pytest_collection_modifyitems(config, items):
    """Of the test files that are run here once more, only what runs on a backend."""
    again = [item for item in items if item.path.parent == HERE and item.path.stem.endswith("_emulated")]
    left_out = [item for item in again if "device" not in item.fixturenames]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(scope="session")
def emulator():
    """csrc's launchers and the emulator, by ctypes."""
    import emulated

    if emulated.COMPILER is None:
        pytest.skip("no C++ compiler (g++, or CXX) to build the emulator with")
    return emulated.library()


@pytest.fixture
def device(emulator, served_or_skipped):
    import emulated

    from fastlnl import backend, extension

    def implementation(primitive, like):
        return getattr(importlib.import_module(f"fastlnl.ops.{primitive}.cuda_kernel"), primitive)

    with pytest.MonkeyPatch.context() as patch:  # of its own: tests undo theirs
        patch.setattr(extension, "operators", lambda: emulated.Operators)
        patch.setattr(backend, "implementation", served_or_skipped(implementation))
        yield torch.device("cpu")
