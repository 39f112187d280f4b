"""row_stats on the GPU: one reading of the logits, in one tile up to 8,192 columns and in blocks above."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlnl.ops.row_loss import RowStats
from fastlnl.ops.row_loss.triton_kernel import TILE_COLUMNS, tile_shape
from fastlnl.ops.row_loss.triton_rows import NO_TARGET, below, check_rows, store_stats


@triton.jit
def row_stats_kernel(logits, label, stats, prediction, errors, batch, C: tl.constexpr, STRIDE: tl.constexpr,
                     ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside_rows = rows < batch
    y, _sample, valid = check_rows(rows, inside_rows, label, label, errors, 0, C, True, False, NO_TARGET)
    zero = rows.to(tl.float32) * 0.0
    top, others = zero + float("-inf"), zero + float("-inf")
    s_e, s_ex, z_y, column = zero, zero, zero, rows * 0
    for start in range(0, C, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = (columns < C)[None, :]
        cells = logits + rows[:, None] * STRIDE + columns[None, :]
        z = tl.load(cells, mask=inside_rows[:, None] & inside, other=0.0).to(tl.float32)
        z = tl.where(inside, z, float("-inf"))
        at_label = columns[None, :] == y[:, None]
        block_top = tl.max(z, 1)
        here = tl.min(tl.where(z == block_top[:, None], columns[None, :], C - 1), 1)
        column = tl.where(block_top > top, here, column)
        others = tl.maximum(others, tl.max(tl.where(at_label, float("-inf"), z), 1))
        z_y += tl.sum(tl.where(at_label & inside, z, 0.0), 1)
        grown = tl.maximum(top, block_top)
        shift = tl.where(top == float("-inf"), 0.0, below(top, grown))
        x = below(z, grown[:, None])
        e = tl.where(inside, tl.exp(x), 0.0)
        s_ex = tl.exp(shift) * (s_ex + shift * s_e) + tl.sum(e * x, 1)
        s_e = tl.exp(shift) * s_e + tl.sum(e, 1)
        top = grown
    nll = tl.log(s_e) - below(z_y, top)
    margin = z_y - others if C > 1 else zero
    entropy = tl.log(s_e) - s_ex / s_e
    store_stats(stats, prediction, rows, valid, batch, nll, 1.0 / s_e, margin, entropy, column)
    refused = inside_rows & (valid == 0)
    for i in tl.static_range(5):
        tl.store(stats + i * batch + rows, zero, mask=refused)
    tl.store(prediction + rows, rows * 0, mask=refused)


def row_stats(logits: Tensor, label: Tensor, errors: Tensor) -> RowStats:
    z = logits if logits.stride(1) == 1 else logits.contiguous()
    batch, classes = z.shape
    stats = torch.empty(5, batch, device=z.device)
    prediction = torch.empty(batch, dtype=torch.int64, device=z.device)
    if batch > 0:
        shape = tile_shape(min(classes, TILE_COLUMNS))
        grid = (triton.cdiv(batch, shape["ROWS"]),)
        row_stats_kernel[grid](z, label, stats, prediction, errors, batch, C=classes, STRIDE=z.stride(0), **shape)
    return RowStats(stats, prediction)
