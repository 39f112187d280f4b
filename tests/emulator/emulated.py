"""Builds csrc for the CPU with the emulator (cuda_emulator.h) and stands in for `fastlnl.extension.operators()`."""

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from structures import structure

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
FLAGS = ["-std=c++20", "-Og", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-fno-gnu-unique", "-DFASTLNL_EMULATOR"]
FLAGS += [f"-I{HERE}"]
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.uint8: 3, torch.int16: 4}
READ, WRITE = 1, 2
LONGEST = ("row_loss", "two_view_loss")  # to compile
GRANULE = None  # bytes the emulator watches as one; None: an element
COMPILER = shutil.which(os.environ.get("CXX", "g++"))


def folder_of(state):
    """A place for what is built of this state, which all processes of the machine share."""
    state = hashlib.sha256(repr((state, FLAGS, COMPILER, torch.__version__)).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"fastlnl-emulator-{os.getuid()}-{state}"
    folder.mkdir(exist_ok=True)
    return folder


def make(path, command):
    """Run a command that writes a file, unless it is there; of several processes one does and the others wait."""
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            run(*command, "-o", f"{path}.new")
            os.replace(f"{path}.new", path)
    return path


def build(sources, name, *flags, csrc=CSRC):
    """A shared library of these sources; each is compiled once for each state of itself, the headers and the flags."""
    headers = sorted([*csrc.glob("*.cuh"), *csrc.glob("*.h"), *HERE.glob("*.h")])
    folder = folder_of((hash_of(headers), flags))

    def compiled(source):
        made = folder / f"{source.stem}-{hash_of([source])}.o"
        fast = ["-O2"] if source.name == "emulator.cpp" else []
        return make(made, [COMPILER, *FLAGS, *fast, f"-I{csrc}", *flags, "-x", "c++", "-c", source])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    library = folder / hash_of(objects) / f"lib{name}.so"
    library.parent.mkdir(exist_ok=True)
    return make(library, [COMPILER, "-shared", *objects, *(f for f in flags if f[:2] in ("-L", "-l", "-W"))])


def hash_of(paths):
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@cache
def library():
    """The launchers and the emulator, by ctypes."""
    sources = sorted(CSRC.glob("*.cu"), key=lambda path: path.stem not in LONGEST)
    loaded = ctypes.CDLL(str(build([*sources, HERE / "emulator.cpp"], "kernels")))
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


def launch(launcher, arguments, inputs, outputs, updated, book=None, **numbers):
    """Run one launcher with a structure of csrc/kernels.h, tensors and numbers by its names; raises EmulatorError."""
    emulator = library()
    emulator.emulator_forget()
    pointers = {name: allow(emulator, x, READ) for name, x in inputs.items()}
    pointers |= {name: allow(emulator, x, WRITE) for name, x in outputs.items()}
    pointers |= {name: allow(emulator, x, READ | WRITE) for name, x in updated.items()}
    if book is not None:
        numbers["book"] = book_of(emulator, *book)
    args = structure(arguments)(**pointers, **numbers)
    code = getattr(emulator, launcher)(ctypes.byref(args), None)
    if error := emulator.emulator_error():
        raise EmulatorError(error.decode())
    if code != 0:
        raise RuntimeError(emulator.fastlnl_error_text(code).decode())


def book_of(emulator, records, counters, history, num_classes, mean_row, ema_row, kept_row, log_odds, momentum):
    pointers = {"records": allow(emulator, records, READ | WRITE), "counters": allow(emulator, counters, READ | WRITE)}
    pointers["history"] = allow(emulator, history, WRITE)
    return structure("BookArgs")(
        **pointers, num_samples=0 if records is None else len(records), num_classes=num_classes, mean_row=mean_row,
        ema_row=ema_row, kept_row=kept_row, log_odds=log_odds,
        half=history is not None and history.dtype == torch.float16, momentum=momentum,
    )  # fmt: skip


def rows_of(logits):
    shape = {"row_stride": logits.stride(0), "batch": logits.shape[0], "classes": logits.shape[1]}
    return shape | {"logits_type": TYPES[logits.dtype]}


class Operators:
    """The operators of csrc/library.cpp, run by the emulator."""

    @staticmethod
    def row_loss(
        logits, label, index, target, table, moved, step, weight, loss, dlogits, stats, prediction, errors, kind,
        one_hot, kept, seed, use, keep, grad_scale, q0, q1, q2, q3, *book,
    ):  # fmt: skip
        inputs = {"logits": logits, "label": label, "index": index, "target": target, "step": step, "weight": weight}
        outputs = {"loss": loss, "dlogits": dlogits, "stats": stats, "prediction": prediction}
        numbers = {"loss_kind": kind, "one_hot": one_hot, "kept": kept, "seed": seed, "use": use, "keep": keep}
        numbers |= {"grad_scale": grad_scale, "parameters": (ctypes.c_float * 4)(q0, q1, q2, q3)}
        if table is not None:
            numbers |= {"num_samples": len(table), "table_type": TYPES[table.dtype]}
            numbers["table_bytes"] = table.shape[1] * table.itemsize
        updated = {"table": table, "moved": moved, "errors": errors}
        launch("fastlnl_row_loss", "RowArgs", inputs, outputs, updated, book, **numbers, **rows_of(logits))

    @staticmethod
    def row_stats(logits, label, stats, prediction, errors):
        inputs, outputs = {"logits": logits, "label": label}, {"stats": stats, "prediction": prediction}
        launch("fastlnl_row_stats", "RowArgs", inputs, outputs, {"errors": errors}, **rows_of(logits))

    @staticmethod
    def dynamics(records, counters, index, label, prediction, second, numbers, history, *book):
        inputs = {"index": index, "label": label, "prediction": prediction, "second": second, "numbers": numbers}
        book = (records, counters, history, *book)
        launch("fastlnl_dynamics", "DynamicsArgs", inputs, {}, {}, book, batch=len(index))

    @staticmethod
    def value_histogram(x, group, given, keys, counts, mean, limits, left_out):
        launch(
            "fastlnl_value_histogram", "HistogramArgs", {"x": x, "group": group, "given": given}, {"limits": limits},
            {"keys": keys, "counts": counts, "mean": mean, "left_out": left_out}, n=len(x), groups=len(counts),
            bins=counts.shape[1],
        )  # fmt: skip

    @staticmethod
    def histogram_zoom(x, group, limits, at, bin_mean, bin_counts, cells, value, counts):
        inputs = {"x": x, "group": group, "limits": limits, "at": at, "bin_mean": bin_mean, "bin_counts": bin_counts}
        launch(
            "fastlnl_histogram_zoom", "ZoomArgs", inputs, {"value": value, "counts": counts}, {"cells": cells},
            n=len(x), groups=len(at), bins=bin_counts.shape[1],
        )  # fmt: skip

    @staticmethod
    def mixture_em(
        value, counts, offset, limits, start, draw, fitted, info, odds, cut, sums, family, init, max_iter, clip,
        reg_covar, tol,
    ):  # fmt: skip
        inputs = {"value": value, "counts": counts, "offset": offset, "limits": limits, "start": start, "draw": draw}
        launch(
            "fastlnl_mixture_em", "EMArgs", inputs, {"fitted": fitted, "info": info, "odds": odds, "cut": cut},
            {"sums": sums}, most_blocks=0 if sums is None else len(sums), points=len(value), groups=len(fitted),
            max_iter=max_iter, family=family, init=init, clip=clip, reg_covar=reg_covar, tol=tol,
        )  # fmt: skip

    @staticmethod
    def mixture_posterior(x, odds, group, posterior, beta, log_odds):
        inputs = {"x": x, "odds": odds, "group": group}
        launch(
            "fastlnl_mixture_posterior", "PosteriorArgs", inputs, {"posterior": posterior}, {}, n=len(x),
            groups=len(odds), beta=beta, log_odds=log_odds,
        )  # fmt: skip

    @staticmethod
    def select(scores, quota, group, mask, cut, count, prefix, remaining, largest):
        launch(
            "fastlnl_select", "SelectArgs", {"scores": scores, "quota": quota, "group": group}, {"mask": mask},
            {"cut": cut, "count": count, "prefix": prefix, "remaining": remaining}, n=len(scores), groups=len(quota),
            largest=largest,
        )  # fmt: skip

    @staticmethod
    def two_view_loss(*arguments):
        import emulated_two_view

        emulated_two_view.two_view_loss(*arguments)
