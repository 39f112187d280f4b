"""mix_views on the CPU: rows are found by their address; sixteen elements at a time."""

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from torch import Tensor

from fastlnl.cpu import pages, team
from fastlnl.cpu.native import as_float32, as_int64, take
from fastlnl.cpu.simd import WIDTH, fma, load, load_first, splat, store, store_first
from fastlnl.ops.mix_views import like_rows

SERIAL_BELOW = 1 << 18  # elements
CHUNK_ELEMENTS = 1 << 15
_ZERO = np.float32(0.0)


@njit
def mix_row(out, own, other, size, coefficient):
    """out = coefficient own + (1 - coefficient) other; both are at addresses of float32."""
    a, rest = splat(coefficient), splat(np.float32(1.0) - coefficient)
    whole = size - size % WIDTH
    for j in range(0, whole, WIDTH):
        store(out, j, fma(a, load(own, j), rest * load(other, j)))
    if whole < size:
        count = size - whole
        x, y = load_first(own, whole, count, _ZERO), load_first(other, whole, count, _ZERO)
        store_first(out, whole, count, fma(a, x, rest * y))


@njit
def find_view(views, count, row):
    """Which view a row is of; views[3 v] is the first row of view v."""
    v = 0
    while v + 1 < count and row >= views[3 * v + 3]:
        v += 1
    return v


@njit("void(int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64)", cache=True, nogil=True)
def mix_kernel(cursor, chunk, rows, views_, count, size, classes, partner_, coefficient_, each, images, target):
    """`views_`: for each view its first row, the address of its images and the address of its targets."""
    views, partner, coefficient = as_int64(views_), as_int64(partner_), as_float32(coefficient_)
    while True:
        begin = take(cursor, chunk)
        if begin >= rows:
            break
        for r in range(begin, min(begin + chunk, rows)):
            other = partner[r] if 0 <= partner[r] < rows else r
            v, u = find_view(views, count, r), find_view(views, count, other)
            i, j = r - views[3 * v], other - views[3 * u]
            a = coefficient[r * each]
            mix_row(images + 4 * r * size, views[3 * v + 1] + 4 * i * size, views[3 * u + 1] + 4 * j * size, size, a)
            mix_row(
                target + 4 * r * classes, views[3 * v + 2] + 4 * i * classes, views[3 * u + 2] + 4 * j * classes,
                classes, a,
            )  # fmt: skip


def mix_views(
    views: Sequence[Tensor], targets: Sequence[Tensor], partner: Tensor, coefficient: Tensor
) -> tuple[Tensor, Tensor]:
    like, classes, rows = views[0], targets[0].shape[1], len(partner)
    views = [x if x.dtype == torch.float32 else x.float() for x in views]
    size, places, first = like.shape[1:].numel(), np.empty((len(views), 3), np.int64), 0
    for v, (x, t) in enumerate(zip(views, targets, strict=True)):
        places[v] = first, x.data_ptr(), t.data_ptr()
        first += len(x)
    images, target = pages.empty(rows, size), torch.empty(rows, classes)
    run = team.alone if rows * size < SERIAL_BELOW else team.team.run
    run(
        mix_kernel, max(1, CHUNK_ELEMENTS // max(size, 1)), rows, places.ctypes.data, len(views), size, classes,
        partner.data_ptr(), coefficient.data_ptr(), int(coefficient.dim() > 0), images.data_ptr(), target.data_ptr(),
    )  # fmt: skip
    return like_rows(like, images).to(like.dtype), target
