"""random_words on the CPU: a team takes ids; the counters of one id are independent, so LLVM puts them side by side."""

import zlib

import numpy as np
import torch
from numba import njit
from torch import Tensor

from fastlnl.cpu import team
from fastlnl.cpu.native import as_int64, take
from fastlnl.cpu.words import as_int32
from fastlnl.ops.augment_batch.numba_kernel import philox
from fastlnl.philox import MASK

SERIAL_BELOW = 1 << 17  # words
HALF = 1 << 31


@njit(f"void({', '.join(['int64'] * 9)})", cache=True, nogil=True, error_model="numpy")
def fill(cursor, batch, index_, draws, key0, key1, epoch, view, out_):
    index = as_int64(index_)
    whole = draws // 4
    while True:
        b = take(cursor, 1)
        if b >= batch:
            break
        low, high = index[b] & MASK, (index[b] >> 32) & MASK
        out = as_int32(out_ + 4 * b * draws)
        for block in range(whole):
            w0, w1, w2, w3 = philox(low, high, epoch, block + (view << 16), key0, key1)
            out[4 * block] = np.int32(w0 - HALF)
            out[4 * block + 1] = np.int32(w1 - HALF)
            out[4 * block + 2] = np.int32(w2 - HALF)
            out[4 * block + 3] = np.int32(w3 - HALF)
        if 4 * whole < draws:
            w0, w1, w2, _w3 = philox(low, high, epoch, whole + (view << 16), key0, key1)
            out[4 * whole] = np.int32(w0 - HALF)
            if 4 * whole + 1 < draws:
                out[4 * whole + 1] = np.int32(w1 - HALF)
            if 4 * whole + 2 < draws:
                out[4 * whole + 2] = np.int32(w2 - HALF)


def random_words(index: Tensor, draws: int, seed: int, stream: str, epoch: int, view: int) -> Tensor:
    out = torch.empty(len(index), draws, dtype=torch.int32)
    run = team.alone if out.numel() < SERIAL_BELOW else team.team.run
    run(fill, len(index), index.data_ptr(), draws, seed, zlib.crc32(stream.encode()), epoch, view, out.data_ptr())
    return out
