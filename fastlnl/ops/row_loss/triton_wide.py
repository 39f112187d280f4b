"""row_loss for rows wider than a register tile: one row a program, read twice in blocks of columns.

The first reading keeps the running maximum and rescales the sums when it grows (online softmax); the second writes.
"""

import triton
import triton.language as tl

from fastlnl.ops.row_loss.storage import FLOAT32
from fastlnl.ops.row_loss.triton_rows import (
    NO_TARGET,
    TABLE,
    below,
    check_rows,
    finish_rows,
    label_of,
    occurrences,
    store_stats,
)
from fastlnl.ops.row_loss.triton_storage import merge_best, new_best, read_rows, write_best, write_dense

WIDE_BLOCK = 2048  # 8 elements a thread: at 16 the label memory spills on sm_90
TOPK_BLOCK = 1024  # the list of the best needs registers: at 2048 two of them spill


@triton.jit
def wide_row(row, sample, stores, logits, label, target, weight, loss, dlogits, stats, prediction, batch, seed, step,
             use, keep, grad_scale, q0, q1, q2, q3, C: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr,
             COEFFICIENTS: tl.constexpr, TARGET: tl.constexpr, LABEL: tl.constexpr, WEIGHT: tl.constexpr,
             STATS: tl.constexpr, ONE_HOT: tl.constexpr, STORAGE: tl.constexpr,
             KEPT: tl.constexpr):  # fmt: skip
    """One row; `row`, `sample` and `stores` have shape (1,). Returns nothing, writes all its outputs."""
    y = label_of(label, row, row >= 0, LABEL)
    zero = row.to(tl.float32) * 0.0
    source = sample if TARGET == TABLE else row
    fresh = zero > 0
    r_use, p_use, keep_row = zero, zero, zero + keep
    if TARGET != NO_TARGET:
        r_use = zero + use
        if TARGET == TABLE:
            fresh = tl.sum(read_rows(target, sample, tl.arange(0, 1), row >= 0, C, STORAGE, KEPT), 1) < 0
            if not ONE_HOT:
                r_use, keep_row = tl.where(fresh, 0.0, r_use), tl.where(fresh, 0.0, keep_row)
        p_use = 1.0 - r_use
    top, others = zero + float("-inf"), zero + float("-inf")
    column = row * 0
    s_e, s_ex, s_x, s_r, s_rx, s_re, s_ee, z_y = zero, zero, zero, zero, zero, zero, zero, zero
    for start in range(0, C, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = (columns < C)[None, :]
        z = tl.load(logits + row[:, None] * STRIDE + columns[None, :], mask=inside, other=0.0)
        z = tl.where(inside, z.to(tl.float32), float("-inf"))
        at_label = columns[None, :] == y[:, None]
        block_top = tl.max(z, 1)
        if STATS:
            here = tl.min(tl.where(z == block_top[:, None], columns[None, :], C - 1), 1)
            column = tl.where(block_top > top, here, column)
            others = tl.maximum(others, tl.max(tl.where(at_label, float("-inf"), z), 1))
        z_y += tl.sum(tl.where(at_label & inside, z, 0.0), 1)
        grown = tl.maximum(top, block_top)
        shift = tl.where(top == float("-inf"), 0.0, below(top, grown))
        ratio = tl.exp(shift)
        x = below(z, grown[:, None])
        e = tl.where(inside, tl.exp(x), 0.0)
        s_ex = ratio * (s_ex + shift * s_e) + tl.sum(e * x, 1)
        s_e = ratio * s_e + tl.sum(e, 1)
        s_x = s_x + shift * start + tl.sum(tl.where(inside, x, 0.0), 1)
        if TARGET != NO_TARGET:
            r = read_rows(target, source, columns, row >= 0, C, STORAGE, KEPT)
            if ONE_HOT:
                r = tl.where(fresh[:, None], tl.where(at_label, 1.0, 0.0), r)
            s_rx += shift * s_r + tl.sum(tl.where(inside, r * x, 0.0), 1)
            s_r += tl.sum(r, 1)
            s_re = ratio * s_re + tl.sum(r * e, 1)
            s_ee = ratio * ratio * s_ee + tl.sum(e * e, 1)
        top = grown
    x_y = below(z_y, top)
    live = row >= 0
    scale, entropy, nll, finite, a, b, c, d, e_, f = finish_rows(
        row, live, y, s_e, s_ex, s_x, x_y, p_use, r_use, s_r, s_rx, s_re, s_ee, weight, grad_scale, loss,
        q0, q1, q2, q3, C, COEFFICIENTS, TARGET, WEIGHT)  # fmt: skip
    offset = -s_ex * scale  # H - log sum e, without the cancellation
    stores = stores & finite & (fresh | (keep_row < 1.0))
    if STORAGE == "topk":
        best, kept = new_best(KEPT)
        rest = zero
    for start in range(0, C, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = (columns < C)[None, :]
        z = tl.load(logits + row[:, None] * STRIDE + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        at_label = columns[None, :] == y[:, None]
        x = below(z, top[:, None])
        p = tl.exp(x) * scale[:, None]
        dz = a[:, None] + d[:, None] * (x + offset[:, None])
        if TARGET != NO_TARGET:
            r = read_rows(target, source, columns, row >= 0, C, STORAGE, KEPT)
            if ONE_HOT:
                r = tl.where(fresh[:, None], tl.where(at_label, 1.0, 0.0), r)
            t = r_use[:, None] * r + p_use[:, None] * p
            dz = p * (dz + e_[:, None] * t) + (f[:, None] - c[:, None] * t)
            if TARGET == TABLE:
                new = keep_row[:, None] * r + (1.0 - keep_row)[:, None] * p
                if STORAGE == "topk":
                    best, kept, rest = merge_best(
                        best, kept, rest, tl.where(inside & stores[:, None], new, -1.0), columns
                    )
                else:
                    write_dense(target, sample, columns, new, stores, seed, step, C, STORAGE)
        else:
            dz = p * dz + f[:, None]
        if LABEL:
            dz = tl.where(at_label, dz - b[:, None], dz)
        tl.store(dlogits + row[:, None] * C + columns[None, :], dz, mask=inside)
    if TARGET == TABLE and STORAGE == "topk":
        write_best(target, sample, best, kept, rest, stores, seed, step, C, KEPT)
    if STATS:
        store_stats(stats, prediction, row, live, batch, nll, scale, z_y - others, entropy, column)


@triton.jit(do_not_specialize=["seed"])
def row_loss_wide_kernel(logits, label, index, target, weight, loss, dlogits, stats, prediction, errors, step, batch,
                         num_samples, seed, use, keep, grad_scale, q0, q1, q2, q3, C: tl.constexpr,
                         STRIDE: tl.constexpr, BLOCK: tl.constexpr, SCAN: tl.constexpr, COEFFICIENTS: tl.constexpr,
                         TARGET: tl.constexpr, LABEL: tl.constexpr, INDEX: tl.constexpr, WEIGHT: tl.constexpr,
                         STATS: tl.constexpr, ONE_HOT: tl.constexpr, STORAGE: tl.constexpr,
                         KEPT: tl.constexpr):  # fmt: skip
    """One row a program; the leader of a repeated id serves all its occurrences, see `triton_kernel`."""
    row = tl.program_id(0).to(tl.int64) + tl.zeros([1], tl.int64)
    _y, sample, valid = check_rows(row, row >= 0, label, index, errors, num_samples, C, LABEL, INDEX, TARGET)
    if tl.max(valid.to(tl.int32), 0) == 0:
        tl.store(loss + row, tl.zeros([1], tl.float32))
        for start in range(0, C, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            cells = dlogits + row[:, None] * C + columns[None, :]
            tl.store(cells, tl.zeros([1, BLOCK], tl.float32), mask=(columns < C)[None, :])
        if STATS:
            for i in tl.static_range(5):
                tl.store(stats + i * batch + row, tl.zeros([1], tl.float32))
            tl.store(prediction + row, row * 0)
    elif TARGET == TABLE:
        current, last = occurrences(sample, row * 0 - 1, label, index, batch, C, LABEL, SCAN)
        if tl.max(last, 0) == tl.max(row, 0):
            while tl.max(current - row, 0) <= 0:
                wide_row(
                    current, sample, current == row, logits, label, target, weight, loss, dlogits, stats, prediction,
                    batch, seed, step, use, keep, grad_scale, q0, q1, q2, q3, C, STRIDE, BLOCK, COEFFICIENTS, TARGET,
                    LABEL, WEIGHT, STATS, ONE_HOT, STORAGE, KEPT)  # fmt: skip
                if tl.max(current - row, 0) < 0:
                    current, last = occurrences(sample, current, label, index, batch, C, LABEL, SCAN)
                else:
                    current = current + 1
    else:
        wide_row(
            row, sample, row < 0, logits, label, target, weight, loss, dlogits, stats, prediction, batch, seed, step,
            use, keep, grad_scale, q0, q1, q2, q3, C, STRIDE, BLOCK, COEFFICIENTS, TARGET, LABEL, WEIGHT, STATS,
            ONE_HOT, STORAGE, KEPT)  # fmt: skip


def wide_launch(batch, classes, storage=FLOAT32):
    """Kernel, grid and shape for rows of any width."""
    block = TOPK_BLOCK if storage.kind == "topk" else WIDE_BLOCK
    return row_loss_wide_kernel, (batch,), {"BLOCK": block, "SCAN": 1024, "num_warps": 8}
