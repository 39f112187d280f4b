"""history_weight on the GPU: every program takes a piece of all rows, the ring is read once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

PIECE = 1024


@triton.jit
def history_weight_kernel(history, position, out, num_samples, rows, decay, PIECE: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64) * PIECE + tl.arange(0, PIECE)
    inside = sample < num_samples
    weighted, total = tl.zeros([PIECE], tl.float32), tl.zeros([PIECE], tl.float32)
    weight = total + 1.0
    newest, stored = tl.load(position) - 1 + rows, tl.load(position + 1)
    for age in range(stored):
        row = (newest - age) % rows
        h = tl.load(history + row * num_samples + sample, mask=inside, other=0.0).to(tl.float32)
        there = h == h
        a = tl.where(there, weight, 0.0)
        weighted += tl.where(there, a * h, 0.0)
        total += a
        weight = tl.where(total > 0, weight * decay, weight)
    tl.store(out + sample, tl.where(total > 0, weighted / tl.where(total > 0, total, 1.0), 0.0), mask=inside)


def history_weight(history: Tensor, position: Tensor, decay: float) -> Tensor:
    rows, num_samples = history.shape
    out = torch.empty(num_samples, device=history.device)
    if num_samples > 0:
        grid = (triton.cdiv(num_samples, PIECE),)
        history_weight_kernel[grid](history, position, out, num_samples, rows, decay, PIECE=PIECE)
    return out
