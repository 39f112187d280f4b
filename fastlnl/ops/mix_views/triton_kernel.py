"""mix_views on the GPU: a program a piece of a row; it picks both addresses from those of the views."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlnl.ops.mix_views import like_rows

BLOCK = 1024


@triton.jit
def row_of(views, starts, row, size, VIEWS: tl.constexpr):
    """Address of a row among all views."""
    base, start = views[0], row * 0
    for v in tl.static_range(1, VIEWS):
        here = row >= starts[v]
        base = tl.where(here, views[v], base)
        start = tl.where(here, starts[v], start)
    return base + (row - start) * size


@triton.jit
def mix_views_kernel(views, targets, starts, partner, coefficient, images, target, SIZE: tl.constexpr,
                     C: tl.constexpr, EACH: tl.constexpr, VIEWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    other = tl.load(partner + row)
    other = tl.where((other >= 0) & (other < tl.num_programs(0)), other, row)
    a = tl.load(coefficient + row * EACH)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(row_of(views, starts, row, SIZE, VIEWS) + at, mask=at < SIZE, other=0.0).to(tl.float32)
    y = tl.load(row_of(views, starts, other, SIZE, VIEWS) + at, mask=at < SIZE, other=0.0).to(tl.float32)
    tl.store(images + row * SIZE + at, a * x + (1.0 - a) * y, mask=at < SIZE)
    if tl.program_id(1) == 0:
        for begin in range(0, C, BLOCK):
            column = begin + tl.arange(0, BLOCK)
            t = tl.load(row_of(targets, starts, row, C, VIEWS) + column, mask=column < C, other=0.0)
            u = tl.load(row_of(targets, starts, other, C, VIEWS) + column, mask=column < C, other=0.0)
            tl.store(target + row * C + column, a * t + (1.0 - a) * u, mask=column < C)


def mix_views(
    views: Sequence[Tensor], targets: Sequence[Tensor], partner: Tensor, coefficient: Tensor
) -> tuple[Tensor, Tensor]:
    like, classes, rows = views[0], targets[0].shape[1], len(partner)
    size = like.shape[1:].numel()
    images = torch.empty(rows, size, dtype=like.dtype, device=like.device)
    target = torch.empty(rows, classes, device=like.device)
    starts = [0]
    for x in views:
        starts.append(starts[-1] + len(x))
    if rows > 0:
        mix_views_kernel[(rows, max(1, triton.cdiv(size, BLOCK)))](
            tuple(views), tuple(targets), tuple(starts[:-1]), partner, coefficient, images, target,
            SIZE=size, C=classes, EACH=int(coefficient.dim() > 0), VIEWS=len(views), BLOCK=BLOCK,
        )  # fmt: skip
    return like_rows(like, images), target
