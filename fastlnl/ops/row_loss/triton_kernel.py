"""row_loss on the GPU: rows of up to 8,192 columns live in registers, wider ones are read twice in blocks.

Of several occurrences of an id, the program that holds the last one (the leader) serves all of them, in order, from
the old row it read before; the programs of the others leave these rows alone. So no program reads a table row that
another one writes, in one launch and without waiting. Finding the occurrences reads the batch's ids, 8 B bytes, from
the cache.
"""

from functools import cache

import torch
import triton
import triton.language as tl

from fastlnl.ops.row_loss.contract import RowLossInput, RowLossOutput, RowStats
from fastlnl.ops.row_loss.definition import MAX_PARAMETERS, LossDefinition
from fastlnl.ops.row_loss.storage import FLOAT32
from fastlnl.ops.row_loss.triton_rows import (
    DENSE,
    NO_TARGET,
    TABLE,
    below,
    check_rows,
    finish_rows,
    label_of,
    occurrences,
    store_stats,
)
from fastlnl.ops.row_loss.triton_storage import read_rows, write_dense, write_topk

TILE_COLUMNS, NARROW = 8192, tl.constexpr(64)


@triton.jit
def _log(x):
    return tl.log(x)


@triton.jit
def _exp(x):
    return tl.exp(x)


@triton.jit
def _where(condition, yes, no):
    return tl.where(condition, yes, no)


@triton.jit
def _larger(x, y):
    return tl.maximum(x, y)


NAMESPACE = {"log": _log, "exp": _exp, "where": _where, "larger": _larger, "tl": tl}


@cache
def compiled_coefficients(loss: LossDefinition):
    """The loss's coefficient function as a Triton function of all statistics and parameters."""
    return triton.jit(loss.with_all_arguments(triton.jit(loss.bind(NAMESPACE)), tl=tl))


@triton.jit
def tile_rows(rows, live, old, fresh, logits, label, target, weight, loss, dlogits, stats, prediction, batch, use,
              grad_scale, q0, q1, q2, q3, C: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr,
              COEFFICIENTS: tl.constexpr, TARGET: tl.constexpr, LABEL: tl.constexpr, WEIGHT: tl.constexpr,
              STATS: tl.constexpr, ONE_HOT: tl.constexpr):  # fmt: skip
    """Loss, gradient and statistics of the `live` rows; returns p and which rows are finite.

    Narrow rows are computed in float64: one probability is often nearly 1 there, and what losses make of it cancels.
    """
    NUMBER: tl.constexpr = tl.float64 if BLOCK <= NARROW else tl.float32
    columns = tl.arange(0, BLOCK)
    inside = (columns < C)[None, :]
    z = tl.load(logits + rows[:, None] * STRIDE + columns[None, :], mask=live[:, None] & inside, other=0.0)
    z = tl.where(inside, z.to(NUMBER), float("-inf"))
    y = label_of(label, rows, live, LABEL)
    at_label = columns[None, :] == y[:, None]
    top = tl.max(z, 1)
    x = below(z, top[:, None])
    e = tl.where(inside, tl.exp(x), 0.0)
    s_e = tl.sum(e, 1)
    s_ex, s_x = tl.sum(e * x, 1), tl.sum(tl.where(inside, x, 0.0), 1)
    x_y = tl.sum(tl.where(at_label, x, 0.0), 1) if LABEL else s_e * 0.0
    zero = s_e * 0.0
    s_r, s_rx, s_re, s_ee, r = zero, zero, zero, zero, e
    r_use, p_use = zero, zero
    if TARGET != NO_TARGET:
        if TARGET == DENSE:
            r = tl.load(target + rows[:, None] * C + columns[None, :], mask=live[:, None] & inside, other=0.0)
            r_use = zero + 1.0
        else:
            r = tl.where(fresh[:, None], tl.where(at_label, 1.0, 0.0), old) if ONE_HOT else old
            r_use = tl.where(fresh, 0.0, use) if not ONE_HOT else zero + use
            p_use = 1.0 - r_use
        s_r, s_rx = tl.sum(r, 1), tl.sum(tl.where(inside, r * x, 0.0), 1)
        s_re, s_ee = tl.sum(r * e, 1), tl.sum(e * e, 1)
    scale, entropy, nll, finite, a, b, c, d, e_, f = finish_rows(
        rows, live, y, s_e, s_ex, s_x, x_y, p_use, r_use, s_r, s_rx, s_re, s_ee, weight, grad_scale, loss,
        q0, q1, q2, q3, C, COEFFICIENTS, TARGET, WEIGHT)  # fmt: skip
    p = e * scale[:, None]
    dz = a[:, None] + d[:, None] * (x - (s_ex * scale)[:, None])  # log p + H
    if TARGET != NO_TARGET:
        t = r_use[:, None] * r + p_use[:, None] * p
        dz = p * (dz + e_[:, None] * t) + (f[:, None] - c[:, None] * t)
    else:
        dz = p * dz + f[:, None]
    if LABEL:
        dz = tl.where(at_label, dz - b[:, None], dz)
    tl.store(dlogits + rows[:, None] * C + columns[None, :], dz.to(tl.float32), mask=live[:, None] & inside)
    if STATS:
        others = tl.max(tl.where(at_label, float("-inf"), z), 1)
        margin = tl.sum(tl.where(at_label, z, 0.0), 1) - others if C > 1 else zero
        column = tl.min(tl.where(z == top[:, None], columns[None, :], C - 1), 1)
        store_stats(stats, prediction, rows, live, batch, nll, scale, margin, entropy, column)
    return p.to(tl.float32), finite, at_label


@triton.jit(do_not_specialize=["seed"])
def row_loss_kernel(logits, label, index, target, weight, loss, dlogits, stats, prediction, errors, step, batch,
                    num_samples, seed, use, keep, grad_scale, q0, q1, q2, q3, C: tl.constexpr, STRIDE: tl.constexpr,
                    ROWS: tl.constexpr, BLOCK: tl.constexpr, SCAN: tl.constexpr, COEFFICIENTS: tl.constexpr,
                    TARGET: tl.constexpr, LABEL: tl.constexpr, INDEX: tl.constexpr, WEIGHT: tl.constexpr,
                    STATS: tl.constexpr, ONE_HOT: tl.constexpr, STORAGE: tl.constexpr,
                    KEPT: tl.constexpr):  # fmt: skip
    """ROWS rows a program, each in one tile of BLOCK columns."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < batch
    _y, sample, valid = check_rows(rows, inside, label, index, errors, num_samples, C, LABEL, INDEX, TARGET)
    columns = tl.arange(0, BLOCK)
    block = (columns < C)[None, :]
    refused = inside & (valid == 0)
    if tl.max(refused.to(tl.int32), 0) > 0:
        tl.store(loss + rows, tl.zeros([ROWS], tl.float32), mask=refused)
        nothing = tl.zeros([ROWS, BLOCK], tl.float32)
        tl.store(dlogits + rows[:, None] * C + columns[None, :], nothing, mask=refused[:, None] & block)
        if STATS:
            for i in tl.static_range(5):
                tl.store(stats + i * batch + rows, tl.zeros([ROWS], tl.float32), mask=refused)
            tl.store(prediction + rows, tl.zeros([ROWS], tl.int64), mask=refused)
    if TARGET == TABLE:
        current, last = occurrences(sample, rows * 0 - 1, label, index, batch, C, LABEL, SCAN)
        leads = valid & (last == rows)
        old = read_rows(target, sample, columns, leads, C, STORAGE, KEPT)
        fresh = tl.max(tl.where(columns[None, :] == 0, old, float("-inf")), 1) < 0
        keep_row = tl.where(fresh, 0.0, keep) if not ONE_HOT else tl.where(fresh, keep, keep)
        live = leads & (current <= rows)
        while tl.max(live.to(tl.int32), 0) > 0:
            p, finite, at_label = tile_rows(
                current, live, old, fresh, logits, label, target, weight, loss, dlogits, stats, prediction, batch, use,
                grad_scale, q0, q1, q2, q3, C, STRIDE, BLOCK, COEFFICIENTS, TARGET, LABEL, WEIGHT, STATS,
                ONE_HOT)  # fmt: skip
            r = tl.where(fresh[:, None], tl.where(at_label, 1.0, 0.0), old) if ONE_HOT else old
            new = keep_row[:, None] * r + (1.0 - keep_row)[:, None] * p
            stores = live & finite & (current == rows) & (fresh | (keep_row < 1.0))
            if STORAGE == "topk":
                write_topk(target, sample, columns, new, stores, seed, step, C, KEPT)
            else:
                write_dense(target, sample, columns, new, stores, seed, step, C, STORAGE)
            if tl.max((live & (current < rows)).to(tl.int32), 0) > 0:
                following, last = occurrences(sample, current, label, index, batch, C, LABEL, SCAN)
                current = tl.where(current < rows, following, batch)
            else:
                current = rows * 0 + batch
            live = leads & (current <= rows)
    else:
        tile_rows(
            rows, valid, logits, valid, logits, label, target, weight, loss, dlogits, stats, prediction, batch, use,
            grad_scale, q0, q1, q2, q3, C, STRIDE, BLOCK, COEFFICIENTS, TARGET, LABEL, WEIGHT, STATS,
                ONE_HOT)  # fmt: skip


def row_loss(call: RowLossInput) -> RowLossOutput:
    batch, classes = call.logits.shape
    z = call.logits if call.logits.stride(1) == 1 or classes == 1 else call.logits.detach().contiguous()
    device = z.device
    loss, dlogits = torch.empty(batch, device=device), torch.empty(batch, classes, dtype=z.dtype, device=device)
    stats = torch.empty(5 if call.with_stats else 0, batch, device=device)
    prediction = torch.empty(batch if call.with_stats else 0, dtype=torch.int64, device=device)
    memory = call.memory
    if memory is not None:
        kind, target, num_samples = TABLE, memory.table, len(memory.table)
        use, keep, one_hot = memory.use, memory.keep, memory.one_hot
        storage, seed, step = memory.storage, memory.seed, memory.step
        if storage.dtype.itemsize == 2:
            target = target.view(torch.int16)
    else:
        kind, target, num_samples, use, keep, one_hot = NO_TARGET, call.target, 0, 1.0, 1.0, False
        storage, seed, step = FLOAT32, 0, None
        if target is not None:
            kind = DENSE
    q = (*call.parameters, *[0.0] * (MAX_PARAMETERS - len(call.parameters)))
    if batch > 0:
        if classes <= TILE_COLUMNS:
            kernel, grid, shape = tile_launch(batch, classes)
        else:
            from fastlnl.ops.row_loss.triton_wide import wide_launch

            kernel, grid, shape = wide_launch(batch, classes, storage)
        kernel[grid](
            z, call.label, call.index, target, call.weight, loss, dlogits, stats, prediction, call.errors, step, batch,
            num_samples, seed, use, keep, call.grad_scale, *q, C=classes, STRIDE=z.stride(0),
            COEFFICIENTS=compiled_coefficients(call.loss), TARGET=kind, LABEL=call.label is not None,
            INDEX=call.index is not None, WEIGHT=call.weight is not None, STATS=call.with_stats, ONE_HOT=one_hot,
            STORAGE=storage.kind, KEPT=storage.kept, **shape)  # fmt: skip
    if call.reduction != "none":
        loss = loss.sum() / max(batch, 1) if call.reduction == "mean" else loss.sum()
    return RowLossOutput(loss, dlogits, RowStats(stats, prediction) if call.with_stats else None)


def tile_shape(classes):
    """Rows a program, columns of the tile and warps: 8 elements a thread for narrow rows, 16 for wide ones."""
    block = triton.next_power_of_2(classes)
    rows = max(1, min(8, (2048 if block >= 512 else 1024) // block))
    warps = max(1, min(16, rows * block // (512 if block >= 512 else 256)))
    return {"ROWS": rows, "BLOCK": block, "num_warps": warps}


def tile_launch(batch, classes):
    """Kernel, grid and shape for rows that fit a tile."""
    shape = tile_shape(classes)
    shape["SCAN"] = 256 * shape["num_warps"] // shape["ROWS"]
    return row_loss_kernel, (triton.cdiv(batch, shape["ROWS"]),), shape
