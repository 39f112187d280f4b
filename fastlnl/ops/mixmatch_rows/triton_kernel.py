"""mixmatch_rows on the GPU: a row in one tile up to 4,096 columns, three readings above."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlnl.ops.class_prior import ClassPrior
from fastlnl.ops.class_prior.triton_kernel import tile_shape
from fastlnl.ops.mixmatch_rows import MixMatchRows
from fastlnl.ops.row_loss.triton_rows import below


@triton.jit
def read(cells, ratio, columns, live, inside, RATIO: tl.constexpr):
    z = tl.where(inside, tl.load(cells, mask=live, other=0.0).to(tl.float32), float("-inf"))
    r = tl.load(ratio + columns[None, :], mask=inside, other=0.0) if RATIO else tl.zeros_like(z)
    return z, r


@triton.jit
def finish(loss, rows, live, hard, s_tx, s_t, log_sum, square, inner, toward, each, soft, pull, finite):
    """Stores the losses; returns level, slope and hard part of p (level + slope (p - t) - pull ratio) - hard t."""
    nan = tl.where(finite, 0.0, float("nan"))
    value = tl.where(hard, each * (log_sum * s_t - s_tx), soft * square) + nan
    tl.store(loss + rows, value, mask=live)
    level = tl.where(hard, each * s_t, -2.0 * soft * inner) + pull * toward + nan
    return level, tl.where(hard, 0.0, 2.0 * soft), tl.where(hard, each, 0.0)


@triton.jit
def mixmatch_rows_kernel(logits, target, weight, terms, ratio, loss, dlogits, batch, labelled, each, soft, prior_weight,
                         pull, grad_scale, C: tl.constexpr, STRIDE: tl.constexpr, WEIGHT: tl.constexpr,
                         RATIO: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live_rows = rows < batch
    hard = rows < labelled
    if WEIGHT:
        soft = soft * tl.load(weight)
    if tl.program_id(0) == 0:
        share = tl.full([], 0.0, tl.float32)
        if RATIO:
            for start in range(0, C, BLOCK):
                columns = start + tl.arange(0, BLOCK)
                share += tl.sum(tl.load(terms + columns, mask=columns < C, other=0.0), 0)
        tl.store(loss + batch, share * prior_weight)
    zero = rows.to(tl.float32) * 0.0
    if BLOCK >= C:
        columns = tl.arange(0, BLOCK)
        inside = (columns < C)[None, :]
        live = live_rows[:, None] & inside
        z, r = read(logits + rows[:, None] * STRIDE + columns[None, :], ratio, columns, live, inside, RATIO)
        t = tl.load(target + rows[:, None] * C + columns[None, :], mask=live, other=0.0)
        x = tl.where(inside, below(z, tl.max(z, 1)[:, None]), 0.0)
        e = tl.where(inside, tl.exp(x), 0.0)
        s_e = tl.sum(e, 1)
        p = e / s_e[:, None]
        away = p - t
        finite = (s_e < float("inf")) & (tl.abs(tl.sum(x, 1)) < float("inf"))
        level, slope, cut = finish(
            loss, rows, live_rows, hard, tl.sum(t * x, 1), tl.sum(t, 1), tl.log(s_e), tl.sum(away * away, 1),
            tl.sum(p * away, 1), tl.sum(p * r, 1), each, soft, pull, finite)  # fmt: skip
        dz = p * (level[:, None] + slope[:, None] * away - pull * r) - cut[:, None] * t
        tl.store(dlogits + rows[:, None] * C + columns[None, :], grad_scale * dz, mask=live)
    else:
        top, s_e = zero + float("-inf"), zero
        for start in range(0, C, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = (columns < C)[None, :]
            cells = logits + rows[:, None] * STRIDE + columns[None, :]
            z, _r = read(cells, ratio, columns, live_rows[:, None] & inside, inside, False)
            grown = tl.maximum(top, tl.max(z, 1))
            e = tl.where(inside, tl.exp(below(z, grown[:, None])), 0.0)
            s_e = s_e * tl.where(top == float("-inf"), 0.0, tl.exp(below(top, grown))) + tl.sum(e, 1)
            top = grown
        s_x, s_tx, s_t, square, inner, toward = zero, zero, zero, zero, zero, zero
        for start in range(0, C, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = (columns < C)[None, :]
            live = live_rows[:, None] & inside
            z, r = read(logits + rows[:, None] * STRIDE + columns[None, :], ratio, columns, live, inside, RATIO)
            t = tl.load(target + rows[:, None] * C + columns[None, :], mask=live, other=0.0)
            x = tl.where(inside, below(z, top[:, None]), 0.0)
            p = tl.where(inside, tl.exp(x) / s_e[:, None], 0.0)
            away = p - t
            s_x, s_tx, s_t = s_x + tl.sum(x, 1), s_tx + tl.sum(t * x, 1), s_t + tl.sum(t, 1)
            square, inner = square + tl.sum(away * away, 1), inner + tl.sum(p * away, 1)
            toward += tl.sum(p * r, 1)
        finite = (s_e < float("inf")) & (tl.abs(s_x) < float("inf"))
        level, slope, cut = finish(
            loss, rows, live_rows, hard, s_tx, s_t, tl.log(s_e), square, inner, toward, each, soft, pull, finite
        )
        for start in range(0, C, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = (columns < C)[None, :]
            live = live_rows[:, None] & inside
            z, r = read(logits + rows[:, None] * STRIDE + columns[None, :], ratio, columns, live, inside, RATIO)
            t = tl.load(target + rows[:, None] * C + columns[None, :], mask=live, other=0.0)
            p = tl.exp(below(z, top[:, None])) / s_e[:, None]
            dz = p * (level[:, None] + slope[:, None] * (p - t) - pull * r) - cut[:, None] * t
            tl.store(dlogits + rows[:, None] * C + columns[None, :], grad_scale * dz, mask=live)


def mixmatch_rows(
    logits: Tensor, target: Tensor, labelled: int, unlabeled_weight: float | Tensor, prior: ClassPrior | None,
    prior_weight: float, grad_scale: float,
) -> MixMatchRows:  # fmt: skip
    z = logits if logits.stride(1) == 1 else logits.contiguous()
    batch, classes = z.shape
    loss = torch.empty(batch + 1, device=z.device)
    dlogits = torch.empty(batch, classes, dtype=z.dtype, device=z.device)
    weight = unlabeled_weight if isinstance(unlabeled_weight, Tensor) else None
    soft = (1.0 if isinstance(unlabeled_weight, Tensor) else unlabeled_weight) / (max(batch - labelled, 1) * classes)
    shape = tile_shape(classes)
    terms, ratio = (None, None) if prior is None else prior
    mixmatch_rows_kernel[(max(1, triton.cdiv(batch, shape["ROWS"])),)](
        z, target, weight, terms, ratio, loss, dlogits, batch, labelled, 1.0 / max(labelled, 1), soft, prior_weight,
        0.0 if prior is None else prior_weight / max(batch, 1), grad_scale, C=classes, STRIDE=z.stride(0),
        WEIGHT=weight is not None, RATIO=prior is not None, **shape,
    )  # fmt: skip
    return MixMatchRows(loss, dlogits)
