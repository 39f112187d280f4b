"""class_reduce on the GPU: one sweep over the row, in blocks of columns; short rows share a program."""

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST = 2048  # columns of a block


@triton.jit
def class_reduce_kernel(probs, limit, confident, samples, C: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr,
                        BLOCK: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < samples
    top = tl.full([ROWS], float("-inf"), tl.float32)
    best, number, only = tl.full([ROWS], 0, tl.int32), tl.full([ROWS], 0, tl.int32), tl.full([ROWS], C, tl.int32)
    for start in range(0, C, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        live = inside[:, None] & (columns < C)[None, :]
        p = tl.load(probs + rows[:, None] * STRIDE + columns[None, :], mask=live, other=float("-inf")).to(tl.float32)
        p = tl.where(p == p, p, float("-inf"))
        line = tl.load(limit + columns, mask=columns < C, other=float("inf"))
        reached = live & (p >= line[None, :])
        number += tl.sum(reached.to(tl.int32), 1)
        only = tl.minimum(only, tl.min(tl.where(reached, columns[None, :], C), 1))
        here = tl.max(p, 1)
        column = tl.min(tl.where(p == here[:, None], columns[None, :], C), 1)
        best = tl.where(here > top, column, best)
        top = tl.maximum(top, here)
    chosen = tl.where(number > 1, best, tl.where(number == 1, only, -1))
    tl.store(confident + rows, chosen.to(tl.int64), mask=inside)


def class_reduce(probs: Tensor, limit: Tensor) -> Tensor:
    p = probs if probs.stride(1) == 1 else probs.contiguous()
    samples, classes = p.shape
    confident = torch.empty(samples, dtype=torch.int64, device=p.device)
    if samples > 0:
        shape = block_shape(classes)
        grid = (triton.cdiv(samples, shape["ROWS"]),)
        class_reduce_kernel[grid](p, limit, confident, samples, C=classes, STRIDE=p.stride(0), **shape)
    return confident


def block_shape(classes: int) -> dict[str, int]:
    """Rows a program, columns of a block and warps: 8 to 16 elements a thread."""
    block = min(WIDEST, triton.next_power_of_2(classes))
    rows = max(1, min(64, 1024 // block))
    return {"ROWS": rows, "BLOCK": block, "num_warps": max(1, min(4, rows * block // 256))}
