"""random_words on the GPU: a program takes counters of one id and stores their four words side by side."""

import zlib

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCKS = 256  # counters a program


@triton.jit(do_not_specialize=["key", "epoch", "view"])
def random_words_kernel(index, out, draws, key, epoch, view, BLOCKS: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS).to(tl.int64)
    id_ = tl.load(index + b + block * 0)
    low, high = (id_ & 0xFFFFFFFF).to(tl.uint32), ((id_ >> 32) & 0xFFFFFFFF).to(tl.uint32)
    epochs, place = (epoch + block * 0).to(tl.uint32), (block + (view.to(tl.int64) << 16)).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(key, low, high, epochs, place)
    # (w0, w1, w2, w3) of each counter in a row
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    at = tl.program_id(1) * (4 * BLOCKS) + tl.arange(0, 4 * BLOCKS)
    signed = (words ^ 0x80000000).to(tl.int32, bitcast=True)
    tl.store(out + b * draws + at, signed, mask=at < draws)


def random_words(index: Tensor, draws: int, seed: int, stream: str, epoch: int, view: int) -> Tensor:
    out = torch.empty(len(index), draws, dtype=torch.int32, device=index.device)
    if out.numel() > 0:
        grid = (len(index), triton.cdiv(draws, 4 * BLOCKS))
        key = seed + (zlib.crc32(stream.encode()) << 32)
        random_words_kernel[grid](index, out, draws, key, epoch, view, BLOCKS=BLOCKS)
    return out
