"""Builds csrc for the CPU with the emulator (cuda_emulator.h) and stands in for `fastlnl.extension.operators()`."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
FLAGS = ["-std=c++20", "-Og", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-fno-gnu-unique", "-DFASTLNL_EMULATOR"]
FLAGS += [f"-I{CSRC}", f"-I{HERE}"]
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.uint8: 3}
READ, WRITE = 1, 2
GRANULE = None  # bytes the emulator watches as one; None: an element
COMPILER = shutil.which(os.environ.get("CXX", "g++"))


class RowArgs(ctypes.Structure):
    """csrc/kernels.h"""

    POINTERS = (
        "logits", "label", "index", "target", "table", "step", "weight", "loss", "dlogits", "stats", "prediction",
        "errors",
    )  # fmt: skip
    _fields_ = (
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int64) for name in ("row_stride", "batch", "num_samples")),
        *((name, ctypes.c_int32) for name in ("classes", "logits_type", "table_type", "loss_kind", "one_hot")),
        ("seed", ctypes.c_uint32),
        *((name, ctypes.c_float) for name in ("use", "keep", "grad_scale")),
        ("parameters", ctypes.c_float * 4),
    )


def build(sources, name, *flags):
    """A shared library of these sources; built once for each state of csrc and of the emulator."""
    watched = sorted([*CSRC.glob("*"), *HERE.glob("*.h"), *HERE.glob("*.cpp"), *HERE.glob("*.cu")])
    state = hashlib.sha256(b"".join(path.read_bytes() for path in watched))
    state.update(repr((FLAGS, flags, COMPILER, torch.__version__)).encode())
    folder = Path(tempfile.gettempdir()) / f"fastlnl-emulator-{os.getuid()}-{state.hexdigest()[:16]}"
    library = folder / f"lib{name}.so"
    if not library.exists():
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:

            def compile_one(source):
                run(COMPILER, *FLAGS, *flags, "-x", "c++", "-c", source, "-o", f"{scratch}/{source.stem}.o")

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(compile_one, sources))
            objects = [f"{scratch}/{source.stem}.o" for source in sources]
            run(
                COMPILER,
                "-shared",
                *objects,
                *(f for f in flags if f[:2] in ("-L", "-l", "-W")),
                "-o",
                f"{scratch}/done",
            )
            os.replace(f"{scratch}/done", library)
    return library


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@cache
def library():
    """The launchers and the emulator, by ctypes."""
    loaded = ctypes.CDLL(str(build([CSRC / "row_loss.cu", CSRC / "row_stats.cu", HERE / "emulator.cpp"], "kernels")))
    loaded.fastlnl_error_text.restype = ctypes.c_char_p
    return prepared(loaded)


def prepared(loaded):
    loaded.emulator_error.restype = ctypes.c_char_p
    loaded.emulator_argument.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int]
    return loaded


class EmulatorError(AssertionError):
    """What a GPU would not have said."""


def allow(emulator, tensor, allowed):
    """Kernels may touch the tensor; None is a null pointer."""
    if tensor is None:
        return None
    bytes_ = tensor.itemsize * (1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)))
    if tensor.numel() > 0:
        emulator.emulator_argument(tensor.data_ptr(), bytes_, GRANULE or tensor.itemsize, allowed)
    return tensor.data_ptr()


def launch(emulator, launcher, inputs, outputs, updated, numbers):
    """Run one launcher on tensors by the names of RowArgs; raises EmulatorError."""
    emulator.emulator_forget()
    pointers = {name: allow(emulator, x, READ) for name, x in inputs.items()}
    pointers |= {name: allow(emulator, x, WRITE) for name, x in outputs.items()}
    pointers |= {name: allow(emulator, x, READ | WRITE) for name, x in updated.items()}
    logits, table = inputs["logits"], updated.get("table")
    args = RowArgs(**pointers, **numbers, row_stride=logits.stride(0), batch=logits.shape[0], classes=logits.shape[1])
    args.logits_type = TYPES[logits.dtype]
    if table is not None:
        args.num_samples, args.table_type = len(table), TYPES[table.dtype]
    code = getattr(emulator, launcher)(ctypes.byref(args), None)
    if error := emulator.emulator_error():
        raise EmulatorError(error.decode())
    if code != 0:
        raise RuntimeError(emulator.fastlnl_error_text(code).decode())


class Operators:
    """The operators of csrc/library.cpp, run by the emulator."""

    @staticmethod
    def row_loss(
        logits, label, index, target, table, step, weight, loss, dlogits, stats, prediction, errors, kind, one_hot,
        seed, use, keep, grad_scale, *q,
    ):  # fmt: skip
        inputs = {"logits": logits, "label": label, "index": index, "target": target, "step": step, "weight": weight}
        outputs = {"loss": loss, "dlogits": dlogits, "stats": stats, "prediction": prediction}
        numbers = {"loss_kind": kind, "one_hot": one_hot, "seed": seed, "use": use, "keep": keep}
        numbers |= {"grad_scale": grad_scale, "parameters": (ctypes.c_float * 4)(*q)}
        launch(library(), "fastlnl_row_loss", inputs, outputs, {"table": table, "errors": errors}, numbers)

    @staticmethod
    def row_stats(logits, label, stats, prediction, errors):
        outputs = {"stats": stats, "prediction": prediction}
        launch(library(), "fastlnl_row_stats", {"logits": logits, "label": label}, outputs, {"errors": errors}, {})
