"""two_view_loss for rows wider than a register tile: one row of each view a program, read three times in blocks.

The first reading finds maxima, predictions and the sums of the softmaxes (online: they are rescaled when a maximum
grows), the second the mean of the views, the third writes.
"""

import triton
import triton.language as tl

from fastlnl.ops.row_loss.triton_rows import TABLE, check_rows, occurrences
from fastlnl.ops.two_view_loss.triton_rows import (
    COUPLED,
    FULL,
    MEASURE,
    PLAIN,
    entropy_factors,
    inside_clamp,
    mean_view,
    store_gradients,
    store_nothing,
    store_terms,
    weights_of,
)

WIDE_BLOCK = 1024  # at 2048 some registers spill on sm_80 and sm_90


@triton.jit
def grow(z, columns, top, column, total, C: tl.constexpr):
    """Maximum, its first column and sum of exponentials with one more block of columns."""
    block_top = tl.max(z, 1)
    here = tl.min(tl.where(z == block_top[:, None], columns[None, :], C - 1), 1)
    column = tl.where(block_top > top, here, column)
    grown = tl.maximum(top, block_top)
    ratio = tl.where(top == float("-inf"), 0.0, tl.exp(top - grown))
    return grown, column, total * ratio + tl.sum(tl.exp(z - grown[:, None]), 1)


@triton.jit
def load_block(logits, row, columns, C: tl.constexpr, STRIDE: tl.constexpr):
    inside = (columns < C)[None, :]
    z = tl.load(logits + row[:, None] * STRIDE + columns[None, :], mask=inside, other=0.0)
    return tl.where(inside, z.to(tl.float32), float("-inf"))


@triton.jit
def look(row, weak, strong, C: tl.constexpr, WEAK_STRIDE: tl.constexpr, STRONG_STRIDE: tl.constexpr,
         BLOCK: tl.constexpr):  # fmt: skip
    """Maxima, predictions, sums of exponentials, sum of (zs - zw)^2, and whether the row is finite; all (1,)."""
    zero = row.to(tl.float32) * 0.0
    top_w, top_s, k_w, k_s = zero + float("-inf"), zero + float("-inf"), row.to(tl.int32) * 0, row.to(tl.int32) * 0
    s_w, s_s, s_d, s_dd = zero, zero, zero, zero
    for start in range(0, C, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        w = load_block(weak, row, columns, C, WEAK_STRIDE)
        s = load_block(strong, row, columns, C, STRONG_STRIDE)
        d = tl.where((columns < C)[None, :], s - w, 0.0)
        s_d += tl.sum(d, 1)
        s_dd += tl.sum(d * d, 1)
        top_w, k_w, s_w = grow(w, columns, top_w, k_w, s_w, C)
        top_s, k_s, s_s = grow(s, columns, top_s, k_s, s_s, C)
    finite = tl.abs(s_d) < float("inf")
    return top_w, top_s, tl.where(finite, k_w, 0), tl.where(finite, k_s, 0), s_w, s_s, s_dd, finite


@triton.jit
def wide_row(row, count, weak, strong, label, table, weights, terms, loss, dlogits, prediction, batch, depth,
             grad_scale, C: tl.constexpr, WEAK_STRIDE: tl.constexpr, STRONG_STRIDE: tl.constexpr, BLOCK: tl.constexpr,
             BY_CLASS: tl.constexpr, MODE: tl.constexpr):  # fmt: skip
    """All outputs of one row."""
    here = row >= 0
    y = tl.load(label + row)
    tau, eps = weights_of(row, here, y, count, table, weights, batch, depth, BY_CLASS, MODE)
    top_w, top_s, k_w, k_s, s_w, s_s, s_dd, finite = look(row, weak, strong, C, WEAK_STRIDE, STRONG_STRIDE, BLOCK)
    if MODE != COUPLED:
        tl.store(prediction + row, k_w.to(tl.int64))
        tl.store(prediction + batch + row, k_s.to(tl.int64))
    scale_w, scale_s = (1.0 / s_w)[:, None], (1.0 / s_s)[:, None]
    zero = s_w * 0.0
    s_q, inner_w, inner_s, top = zero, zero, zero, zero
    k, free_kw, free_ks = row.to(tl.int32) * 0, zero, zero
    for start in range(0, C, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        p_w = tl.exp(load_block(weak, row, columns, C, WEAK_STRIDE) - top_w[:, None]) * scale_w
        p_s = tl.exp(load_block(strong, row, columns, C, STRONG_STRIDE) - top_s[:, None]) * scale_s
        inside = (columns < C)[None, :]
        q, free_w, free_s = mean_view(p_w, p_s), inside_clamp(p_w), inside_clamp(p_s)
        log_q = tl.log(q)
        s_q += tl.sum(tl.where(inside, q * log_q, 0.0), 1)
        inner_w += tl.sum(free_w * (log_q + 1.0), 1)
        inner_s += tl.sum(free_s * (log_q + 1.0), 1)
        block_top = tl.max(tl.where(inside, q, 0.0), 1)
        if MODE != PLAIN:
            best = tl.min(tl.where(inside & (q == block_top[:, None]), columns[None, :], C), 1)
            at_best, higher = columns[None, :] == best[:, None], block_top > top
            k = tl.where(higher, best, k)
            free_kw = tl.where(higher, tl.sum(tl.where(at_best, free_w, 0.0), 1), free_kw)
            free_ks = tl.where(higher, tl.sum(tl.where(at_best, free_s, 0.0), 1), free_ks)
        top = tl.maximum(top, block_top)
    uncertain = (tau - 1.0) * s_q  # (1 - tau) H
    if MODE == MEASURE:
        store_terms(terms, row, here, batch, top, uncertain, finite)
    else:
        factor, at_top = entropy_factors(top, uncertain, terms, MODE)
        x_y = tl.load(weak + row * WEAK_STRIDE + y).to(tl.float32) - top_w
        x_y += tl.load(strong + row * STRONG_STRIDE + y).to(tl.float32) - top_s
        similar = tl.where(eps == 0, 0.0, eps * (s_dd * (1.0 / C)))
        value = tau * (tl.log(s_w) + tl.log(s_s) - x_y) + similar + factor * uncertain
        tl.store(loss + row, tl.where(finite, value, float("nan")))
        slope, half = 0.5 * factor * (tau - 1.0), 0.5 * at_top
        level_w, level_s = tau - slope * inner_w - half * free_kw, tau - slope * inner_s - half * free_ks
        scale = tl.where(finite, grad_scale, float("nan"))[:, None]
        for start in range(0, C, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            w = load_block(weak, row, columns, C, WEAK_STRIDE)
            s = load_block(strong, row, columns, C, STRONG_STRIDE)
            inside = (columns < C)[None, :]
            pull = tl.where(inside, s - w, 0.0) * (eps * (2.0 / C))[:, None]
            p_w, p_s = tl.exp(w - top_w[:, None]) * scale_w, tl.exp(s - top_s[:, None]) * scale_s
            h = slope[:, None] * (tl.log(mean_view(p_w, p_s)) + 1.0)
            if MODE != PLAIN:
                h += tl.where(columns[None, :] == k[:, None], half[:, None], 0.0)
            given = tl.where(columns[None, :] == y[:, None], tau[:, None], 0.0)
            dz_w = scale * (p_w * level_w[:, None] - given + (inside_clamp(p_w) * h - pull))
            dz_s = scale * (p_s * level_s[:, None] - given + (inside_clamp(p_s) * h + pull))
            store_gradients(dlogits, row, batch, columns[None, :], dz_w, dz_s, inside, C)


@triton.jit
def two_view_loss_wide_kernel(weak, strong, label, index, wrong_count, table, weights, terms, loss, dlogits, prediction,
                              errors, batch, num_samples, depth, grad_scale, C: tl.constexpr,
                              WEAK_STRIDE: tl.constexpr, STRONG_STRIDE: tl.constexpr, BLOCK: tl.constexpr,
                              SCAN: tl.constexpr, BY_CLASS: tl.constexpr, BEFORE: tl.constexpr,
                              MODE: tl.constexpr):  # fmt: skip
    """One row of each view a program; the leader of a repeated id serves all its occurrences, see `triton_kernel`."""
    row = tl.program_id(0).to(tl.int64) + tl.zeros([1], tl.int64)
    y, sample, valid = check_rows(row, row >= 0, label, index, errors, num_samples, C, True, True, TABLE)
    if tl.max(valid.to(tl.int32), 0) == 0:
        store_nothing(terms, loss, prediction, row, row >= 0, batch, MODE)
        if MODE != MEASURE:
            for start in range(0, C, BLOCK):
                columns = start + tl.arange(0, BLOCK)[None, :]
                nothing = tl.zeros([1, BLOCK], tl.float32)
                store_gradients(dlogits, row, batch, columns, nothing, nothing, columns < C, C)
    elif MODE == COUPLED:
        wide_row(row, y, weak, strong, label, table, weights, terms, loss, dlogits, prediction, batch, depth,
                 grad_scale, C, WEAK_STRIDE, STRONG_STRIDE, BLOCK, BY_CLASS, MODE)  # fmt: skip
    else:
        first, last = occurrences(sample, row * 0 - 1, label, index, batch, C, True, SCAN)
        if tl.max(last, 0) == tl.max(row, 0):
            old = tl.load(wrong_count + sample).to(tl.int64)
            new, current = old, first
            while tl.max(current - row, 0) <= 0:
                _w, _s, k_w, k_s, _sw, _ss, _dd, finite = look(
                    current, weak, strong, C, WEAK_STRIDE, STRONG_STRIDE, BLOCK)  # fmt: skip
                y = tl.load(label + current)
                new += tl.where(finite, (k_w != y).to(tl.int64) + (k_s != y).to(tl.int64), 0)
                if tl.max(current - row, 0) < 0:
                    current, last = occurrences(sample, current, label, index, batch, C, True, SCAN)
                else:
                    current = current + 1
            new = tl.minimum(new, FULL)
            tl.store(wrong_count + sample, new.to(tl.int32))
            count = new if BEFORE else old
            current = first
            while tl.max(current - row, 0) <= 0:
                wide_row(current, count, weak, strong, label, table, weights, terms, loss, dlogits, prediction, batch,
                         depth, grad_scale, C, WEAK_STRIDE, STRONG_STRIDE, BLOCK, BY_CLASS, MODE)  # fmt: skip
                if tl.max(current - row, 0) < 0:
                    current, last = occurrences(sample, current, label, index, batch, C, True, SCAN)
                else:
                    current = current + 1
