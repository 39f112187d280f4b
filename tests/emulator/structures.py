"""The structures of csrc/kernels.h for ctypes, read from there, so that they cannot differ."""

import ctypes
import re
from functools import cache
from pathlib import Path

HEADER = Path(__file__).resolve().parents[2] / "csrc" / "kernels.h"
NUMBERS = {
    "int32_t": ctypes.c_int32, "uint32_t": ctypes.c_uint32, "int64_t": ctypes.c_int64, "float": ctypes.c_float,
    "double": ctypes.c_double,
}  # fmt: skip


@cache
def structure(name):
    """Such as "RowArgs"."""
    body = re.search(rf"struct {name} {{\n(.*?)\n}};", HEADER.read_text(), re.DOTALL)[1]
    fields = []
    for declaration in re.sub(r"//.*", "", body).split(";"):
        kind, _, names = declaration.strip().removeprefix("const ").partition(" ")
        for field in filter(None, (part.strip() for part in names.split(","))):
            plain, length = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", field).groups()
            of = ctypes.c_void_p if kind.endswith("*") else NUMBERS.get(kind) or structure(kind)
            fields.append((plain, of * int(length) if length else of))
    return type(name, (ctypes.Structure,), {"_fields_": fields})
