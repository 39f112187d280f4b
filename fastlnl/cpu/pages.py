"""Large outputs on large pages: fresh memory then costs a fault for 2 MiB instead of one for 4 KiB."""

import ctypes
import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor

LARGE = 1 << 25  # bytes; from here on glibc takes memory from the system and gives it back, every time
HUGE_PAGE = 1 << 21
MADV_HUGEPAGE = 14  # <sys/mman.h> of Linux


def empty(batch: int, classes: int) -> Tensor:
    """torch.empty(batch, classes) in float32; on Linux the pages of a large one are asked for in pieces of 2 MiB.

    Only advice, about whole pages inside the tensor; where large pages are switched off nothing happens.
    """
    x = torch.empty(batch, classes)
    if x.nbytes >= LARGE and sys.platform == "linux":
        start = -(-x.data_ptr() // HUGE_PAGE) * HUGE_PAGE
        _libc().madvise(start, (x.data_ptr() + x.nbytes - start) // HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE)
    return x


@cache
def _libc() -> Any:
    library = ctypes.CDLL(None)
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library
