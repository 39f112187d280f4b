"""csrc with faults put into it, each of which can be switched on: one build for all of them."""

import ctypes
import re
from functools import cache
from typing import NamedTuple

import emulated


class Fault(NamedTuple):
    """What is put in the place of a statement (it ends in a semicolon) or an expression of a file."""

    file: str
    there: str
    instead: str
    which: int = 0  # of the places where it stands


# What no fault is tried on need not be compiled: other formats than float32, the other tiles.
LEFT_OUT = [
    ("common.cuh", r"return call\(::emulator::either<.*\);"),
    *(("rows.cuh", rf"return launch_tile<Format, SOURCE, {tile}>\(args, geometry, stream\);") for tile in (1, 3)),
    ("two_view_loss.cu", r"return launch_two_view_tile<Format, 1>\(args, geometry, stream\);"),
    ("row_loss.cu", r"return launch_format<DENSE>\(\*args, stream\);"),
]  # fmt: skip
NUMBERS: dict[Fault, int] = {}  # from 1


def register(*faults):
    for fault in faults:
        NUMBERS.setdefault(fault, len(NUMBERS) + 1)


def with_switches(file, text):
    for left_out, pattern in LEFT_OUT:
        if left_out == file:
            text, count = re.subn(pattern, "return 1;", text)
            assert count == 1, (file, pattern)
    edits = []
    for fault, number in NUMBERS.items():
        if fault.file == file:
            parts = text.split(fault.there)
            assert len(parts) > fault.which + 1, f"no such place in {file} any more: {fault.there}"
            begin = len(fault.there.join(parts[: fault.which + 1]))
            on = f"::emulator::state.fault == {number}"
            if fault.there.endswith(";"):
                new = f"if ({on}) {{ {fault.instead} }} else {{ {fault.there} }}"
            else:
                new = f"({on} ? ({fault.instead}) : ({fault.there}))"
            edits.append((begin, begin + len(fault.there), new))
    for begin, end, new in sorted(edits, reverse=True):
        text = text[:begin] + new + text[end:]
    return text


@cache
def library():
    """The launchers with all faults switched off, and the emulator, by ctypes."""
    texts = {path.name: with_switches(path.name, path.read_text()) for path in sorted(emulated.CSRC.glob("*.[chu]*"))}
    folder = emulated.folder_of(texts)
    for name, text in texts.items():
        if not (folder / name).exists() or (folder / name).read_text() != text:
            (folder / name).write_text(text)
    sources = [path for path in sorted(folder.glob("*.cu")) if path.stem not in ("row_stats", "histogram_zoom")]
    built = emulated.build([*sources, emulated.HERE / "emulator.cpp"], "faulty", csrc=folder)
    return emulated.prepared(ctypes.CDLL(str(built)))


def notice(monkeypatch, fault, call):
    """Run a call with the fault, or without any; raises what notices it."""
    faulty = library()
    monkeypatch.setattr(emulated, "library", lambda: faulty)
    faulty.emulator_fault(0 if fault is None else NUMBERS[fault])
    try:
        call()
    finally:
        faulty.emulator_fault(0)
