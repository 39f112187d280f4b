"""two_view_loss on the GPU: one launch, rows of up to `TILE_COLUMNS` in registers, wider ones read three times.

Of several occurrences of an id, the program that holds the last one (the leader) counts the events of all of them,
reads the table, and writes all their rows; the programs of the others leave. So every counter has one reader and
writer, without atomics and without a launch before. Ids that come once are read from memory once.

"batchmean" takes two launches with a sum between them: the first counts, looks up and measures, the second writes.
"""

import torch
import triton
import triton.language as tl

from fastlnl.ops.row_loss.triton_rows import TABLE, check_rows, occurrences
from fastlnl.ops.two_view_loss import TwoViewInput, TwoViewOutput
from fastlnl.ops.two_view_loss.triton_rows import (
    COUPLED,
    FULL,
    MEASURE,
    PLAIN,
    SAMPLE,
    entropy_factors,
    inside_clamp,
    mean_view,
    store_gradients,
    store_nothing,
    store_terms,
    weights_of,
)

TILE_COLUMNS = 4096


@triton.jit
def load_rows(logits, rows, live, C: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The tile (rows, BLOCK) in float32; -inf past the last column."""
    columns = tl.arange(0, BLOCK)
    inside = (columns < C)[None, :]
    z = tl.load(logits + rows[:, None] * STRIDE + columns[None, :], mask=live[:, None] & inside, other=0.0)
    return tl.where(inside, z.to(tl.float32), float("-inf"))


@triton.jit
def look(weak, strong, C: tl.constexpr, BLOCK: tl.constexpr):
    """Maxima and predictions of both views, zs - zw, and which rows are finite."""
    columns = tl.arange(0, BLOCK)[None, :]
    top_w, top_s = tl.max(weak, 1), tl.max(strong, 1)
    d = tl.where(columns < C, strong - weak, 0.0)
    finite = tl.abs(tl.sum(d, 1)) < float("inf")
    k_w = tl.where(finite, tl.min(tl.where(weak == top_w[:, None], columns, C - 1), 1), 0)
    k_s = tl.where(finite, tl.min(tl.where(strong == top_s[:, None], columns, C - 1), 1), 0)
    return top_w, top_s, k_w, k_s, d, finite


@triton.jit
def events_of(weak, strong, y, live, C: tl.constexpr, BLOCK: tl.constexpr):
    _w, _s, k_w, k_s, _d, finite = look(weak, strong, C, BLOCK)
    return tl.where(live & finite, (k_w != y).to(tl.int64) + (k_s != y).to(tl.int64), 0)


@triton.jit
def finish_rows(rows, live, weak, strong, count, label, table, weights, terms, loss, dlogits, prediction, batch, depth,
                grad_scale, C: tl.constexpr, BLOCK: tl.constexpr, BY_CLASS: tl.constexpr,
                MODE: tl.constexpr):  # fmt: skip
    """All outputs of the `live` rows, whose tiles are `weak` and `strong`."""
    columns = tl.arange(0, BLOCK)[None, :]
    inside = columns < C
    y = tl.load(label + rows, mask=live, other=0)
    tau, eps = weights_of(rows, live, y, count, table, weights, batch, depth, BY_CLASS, MODE)
    top_w, top_s, k_w, k_s, d, finite = look(weak, strong, C, BLOCK)
    if MODE != COUPLED:
        tl.store(prediction + rows, k_w.to(tl.int64), mask=live)
        tl.store(prediction + batch + rows, k_s.to(tl.int64), mask=live)
    x_w, x_s = weak - top_w[:, None], strong - top_s[:, None]
    e_w, e_s = tl.exp(x_w), tl.exp(x_s)
    s_w, s_s = tl.sum(e_w, 1), tl.sum(e_s, 1)
    p_w, p_s = e_w * (1.0 / s_w)[:, None], e_s * (1.0 / s_s)[:, None]
    q = mean_view(p_w, p_s)
    log_q = tl.log(q)
    uncertain = (tau - 1.0) * tl.sum(tl.where(inside, q * log_q, 0.0), 1)  # (1 - tau) H
    top = tl.max(tl.where(inside, q, 0.0), 1)
    if MODE == MEASURE:
        store_terms(terms, rows, live, batch, top, uncertain, finite)
    else:
        at_label = columns == y[:, None]
        nll = tl.log(s_w) + tl.log(s_s) - tl.sum(tl.where(at_label, x_w + x_s, 0.0), 1)
        factor, at_top = entropy_factors(top, uncertain, terms, MODE)
        similar = tl.where(eps == 0, 0.0, eps * (tl.sum(d * d, 1) * (1.0 / C)))
        value = tau * nll + similar + factor * uncertain
        tl.store(loss + rows, tl.where(finite, value, float("nan")), mask=live)
        # h = half of g = at_top [u = k] - factor (1 - tau) (log q_u + 1), where the clamp leaves p alone
        h = (0.5 * factor * (tau - 1.0))[:, None] * (log_q + 1.0)
        if MODE != PLAIN:
            k = tl.min(tl.where(inside & (q == top[:, None]), columns, C), 1)
            h += tl.where(columns == k[:, None], (0.5 * at_top)[:, None], 0.0)
        free_w, free_s = inside_clamp(p_w), inside_clamp(p_s)
        level_w, level_s = tau - tl.sum(free_w * h, 1), tau - tl.sum(free_s * h, 1)
        scale = tl.where(finite, grad_scale, float("nan"))[:, None]
        pull = d * (eps * (2.0 / C))[:, None]
        given = tl.where(at_label, tau[:, None], 0.0)
        dz_w = scale * (p_w * level_w[:, None] - given + (free_w * h - pull))
        dz_s = scale * (p_s * level_s[:, None] - given + (free_s * h + pull))
        store_gradients(dlogits, rows, batch, columns, dz_w, dz_s, live[:, None] & inside, C)


@triton.jit
def two_view_loss_kernel(weak, strong, label, index, wrong_count, table, weights, terms, loss, dlogits, prediction,
                         errors, batch, num_samples, depth, grad_scale, C: tl.constexpr, WEAK_STRIDE: tl.constexpr,
                         STRONG_STRIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, SCAN: tl.constexpr,
                         BY_CLASS: tl.constexpr, BEFORE: tl.constexpr, MODE: tl.constexpr):  # fmt: skip
    """ROWS rows of each view a program, in two tiles of BLOCK columns."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < batch
    y, sample, valid = check_rows(rows, inside, label, index, errors, num_samples, C, True, True, TABLE)
    refused = inside & (valid == 0)
    if tl.max(refused.to(tl.int32), 0) > 0:
        store_nothing(terms, loss, prediction, rows, refused, batch, MODE)
        if MODE != MEASURE:
            columns = tl.arange(0, BLOCK)[None, :]
            nothing = tl.zeros([ROWS, BLOCK], tl.float32)
            store_gradients(dlogits, rows, batch, columns, nothing, nothing, refused[:, None] & (columns < C), C)
    if MODE == COUPLED:
        zw = load_rows(weak, rows, valid, C, WEAK_STRIDE, BLOCK)
        zs = load_rows(strong, rows, valid, C, STRONG_STRIDE, BLOCK)
        finish_rows(rows, valid, zw, zs, y, label, table, weights, terms, loss, dlogits, prediction, batch, depth,
                    grad_scale, C, BLOCK, BY_CLASS, MODE)  # fmt: skip
    else:
        first, last = occurrences(sample, rows * 0 - 1, label, index, batch, C, True, SCAN)
        leads = valid & (last == rows)
        again = leads & (first < rows)
        old = tl.load(wrong_count + sample, mask=leads, other=0).to(tl.int64)
        zw = load_rows(weak, rows, leads, C, WEAK_STRIDE, BLOCK)
        zs = load_rows(strong, rows, leads, C, STRONG_STRIDE, BLOCK)
        new = old + events_of(zw, zs, y, leads, C, BLOCK)
        live, current = again, tl.where(again, first, rows)
        while tl.max(live.to(tl.int32), 0) > 0:
            other_w = load_rows(weak, current, live, C, WEAK_STRIDE, BLOCK)
            other_s = load_rows(strong, current, live, C, STRONG_STRIDE, BLOCK)
            y = tl.load(label + current, mask=live, other=0)
            new += events_of(other_w, other_s, y, live, C, BLOCK)
            following, _last = occurrences(sample, current, label, index, batch, C, True, SCAN)
            live = live & (following < rows)
            current = tl.where(live, following, current)
        new = tl.minimum(new, FULL)
        tl.store(wrong_count + sample, new.to(tl.int32), mask=leads)
        count = new if BEFORE else old
        finish_rows(rows, leads, zw, zs, count, label, table, weights, terms, loss, dlogits, prediction, batch, depth,
                    grad_scale, C, BLOCK, BY_CLASS, MODE)  # fmt: skip
        live, current = again, tl.where(again, first, rows)
        while tl.max(live.to(tl.int32), 0) > 0:
            other_w = load_rows(weak, current, live, C, WEAK_STRIDE, BLOCK)
            other_s = load_rows(strong, current, live, C, STRONG_STRIDE, BLOCK)
            finish_rows(current, live, other_w, other_s, count, label, table, weights, terms, loss, dlogits,
                        prediction, batch, depth, grad_scale, C, BLOCK, BY_CLASS, MODE)  # fmt: skip
            following, _last = occurrences(sample, current, label, index, batch, C, True, SCAN)
            live = live & (following < rows)
            current = tl.where(live, following, current)


def two_view_loss(call: TwoViewInput) -> TwoViewOutput:
    batch, classes = call.weak.shape
    weak, strong = (
        z if z.stride(1) == 1 or classes == 1 else z.detach().contiguous() for z in (call.weak, call.strong)
    )
    device = weak.device
    loss = torch.empty(batch, device=device)
    dlogits = torch.empty(2, batch, classes, dtype=weak.dtype, device=device)
    prediction = torch.empty(2, batch, dtype=torch.int64, device=device)
    if batch > 0:
        kernel, grid, shape = tile_launch(batch, classes) if classes <= TILE_COLUMNS else wide_launch(batch, classes)
        groups, depth, _ = call.table.shape

        def launch(mode, weights, terms):
            kernel[grid](
                weak, strong, call.label, call.index, call.wrong_count, call.table, weights, terms, loss, dlogits,
                prediction, call.errors, batch, len(call.wrong_count), depth, call.grad_scale, C=classes,
                WEAK_STRIDE=weak.stride(0), STRONG_STRIDE=strong.stride(0), BY_CLASS=groups > 1, BEFORE=call.before,
                MODE=mode.value, **shape)  # fmt: skip

        if call.entropy_scale == "batchmean":
            weights, terms = torch.empty(2, batch, device=device), torch.empty(3, batch, device=device)
            launch(MEASURE, weights, terms)
            launch(COUPLED, weights, terms.sum(1))
        else:
            launch(SAMPLE if call.entropy_scale == "sample" else PLAIN, None, None)
    total = loss
    if call.reduction != "none":
        total = loss.sum() / max(batch, 1) if call.reduction == "mean" else loss.sum()
    return TwoViewOutput(total, dlogits, prediction)


def tile_launch(batch, classes):
    """Kernel, grid and shape for rows that fit a tile; 4 elements of a view a thread, 8 of wide rows."""
    block = max(triton.next_power_of_2(classes), 2)
    rows = max(1, min(4, 512 // block))
    warps = max(1, min(16, rows * block // (256 if block >= 512 else 128)))
    shape = {"ROWS": rows, "BLOCK": block, "SCAN": min(1024, max(64, 256 * warps // rows)), "num_warps": warps}
    return two_view_loss_kernel, (triton.cdiv(batch, rows),), shape


def wide_launch(batch, classes):
    """Kernel, grid and shape for rows of any width."""
    from fastlnl.ops.two_view_loss.triton_wide import WIDE_BLOCK, two_view_loss_wide_kernel

    return two_view_loss_wide_kernel, (batch,), {"BLOCK": WIDE_BLOCK, "SCAN": 1024, "num_warps": 8}
