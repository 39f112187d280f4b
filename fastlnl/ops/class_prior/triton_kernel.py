"""class_prior on the GPU: up to 64 programs add up rows, then a program per block of classes adds up theirs."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlnl.ops import class_prior as contract
from fastlnl.ops.class_prior import ClassPrior
from fastlnl.ops.row_loss.triton_rows import below

LOWEST_MEAN = tl.constexpr(contract.LOWEST_MEAN)
GROUPS = 64
TILE_COLUMNS = 4096  # wider rows are read twice, in blocks
CLASSES = 64  # of a block in the second kernel


@triton.jit
def add_rows_kernel(logits, partial, batch, C: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr,
                    BLOCK: tl.constexpr):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    if BLOCK >= C:
        columns = tl.arange(0, BLOCK)
        inside = (columns < C)[None, :]
        total = tl.zeros([BLOCK], tl.float32)
        for first in range(program * ROWS, batch, programs * ROWS):
            rows = first + tl.arange(0, ROWS)
            live = (rows < batch)[:, None] & inside
            cells = logits + rows[:, None].to(tl.int64) * STRIDE + columns[None, :]
            z = tl.where(inside, tl.load(cells, mask=live, other=0.0).to(tl.float32), float("-inf"))
            e = tl.where(inside, tl.exp(below(z, tl.max(z, 1)[:, None])), 0.0)
            total += tl.sum(tl.where((rows < batch)[:, None], e / tl.sum(e, 1)[:, None], 0.0), 0)
        tl.store(partial + program * C + columns, total, mask=columns < C)
    else:
        for first in range(program, batch, programs):
            row = program * 0 + first
            start_of_row = logits + row.to(tl.int64) * STRIDE
            top, s = tl.full([], float("-inf"), tl.float32), tl.full([], 0.0, tl.float32)
            for start in range(0, C, BLOCK):
                columns = start + tl.arange(0, BLOCK)
                z = tl.load(start_of_row + columns, mask=columns < C, other=float("-inf")).to(tl.float32)
                grown = tl.maximum(top, tl.max(z, 0))
                e = tl.where(columns < C, tl.exp(below(z, grown)), 0.0)
                s = s * tl.where(top == float("-inf"), 0.0, tl.exp(below(top, grown))) + tl.sum(e, 0)
                top = grown
            for start in range(0, C, BLOCK):
                columns = start + tl.arange(0, BLOCK)
                z = tl.load(start_of_row + columns, mask=columns < C, other=0.0).to(tl.float32)
                sums = partial + program * C + columns
                before = tl.load(sums, mask=columns < tl.where(row > program, C, 0), other=0.0)
                tl.store(sums, before + tl.exp(below(z, top)) / s, mask=columns < C)


@triton.jit
def compare_kernel(partial, prior, terms, ratio, groups, batch, C: tl.constexpr, PRIOR: tl.constexpr,
                   GROUPS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    group = tl.arange(0, GROUPS)
    there = (group < groups)[:, None] & (columns < C)[None, :]
    mean = tl.sum(tl.load(partial + group[:, None] * C + columns[None, :], mask=there, other=0.0), 0)
    mean = mean / tl.maximum(batch, 1).to(tl.float32)
    mean = tl.where(mean < LOWEST_MEAN, LOWEST_MEAN, mean)
    pi = tl.load(prior + columns, mask=columns < C, other=0.0) if PRIOR else mean * 0.0 + 1.0 / C
    share = pi / mean
    term = tl.where(pi > 0.0, pi * tl.log(tl.where(pi > 0.0, share, 1.0)), share)
    tl.store(terms + columns, tl.where(batch > 0, term, 0.0), mask=columns < C)
    tl.store(ratio + columns, tl.where(batch > 0, share, 0.0), mask=columns < C)


def class_prior(logits: Tensor, prior: Tensor | None) -> ClassPrior:
    z = logits if logits.stride(1) == 1 else logits.contiguous()
    batch, classes = z.shape
    shape = tile_shape(classes)
    groups = min(GROUPS, triton.cdiv(batch, shape["ROWS"]))
    partial = torch.empty(groups, classes, device=z.device)
    terms, ratio = torch.empty(classes, device=z.device), torch.empty(classes, device=z.device)
    if batch > 0:
        add_rows_kernel[(groups,)](z, partial, batch, C=classes, STRIDE=z.stride(0), **shape)
    compare_kernel[(triton.cdiv(classes, CLASSES),)](
        partial, prior, terms, ratio, groups, batch, C=classes, PRIOR=prior is not None, GROUPS=GROUPS, BLOCK=CLASSES
    )
    return ClassPrior(terms, ratio)


def tile_shape(classes: int) -> dict[str, int]:
    """Rows and columns of a tile, and warps: 8 elements a thread; wide rows one at a time, in blocks."""
    block = min(TILE_COLUMNS, triton.next_power_of_2(classes))
    rows = max(1, min(16, 1024 // block))
    return {"ROWS": rows, "BLOCK": block, "num_warps": max(1, min(8, rows * block // 256))}
