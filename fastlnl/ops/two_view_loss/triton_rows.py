"""What the kernels of two_view_loss for narrow and for wide rows have in common."""

import triton
import triton.language as tl

from fastlnl.ops import two_view_loss as contract

LOW, HIGH = tl.constexpr(contract.FLOOR), tl.constexpr(1 - contract.FLOOR)
FULL = tl.constexpr(contract.FULL)
# What a launch does about the entropy; the last two are the launches of "batchmean".
PLAIN, SAMPLE, MEASURE, COUPLED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def inside_clamp(p):
    """p where the clamp leaves it alone, elsewhere 0."""
    return tl.where((p >= LOW) & (p <= HIGH), p, 0.0)


@triton.jit
def mean_view(p_weak, p_strong):
    """Mean of the clamped probabilities."""
    return 0.5 * (tl.minimum(tl.maximum(p_weak, LOW), HIGH) + tl.minimum(tl.maximum(p_strong, LOW), HIGH))


@triton.jit
def weights_of(rows, live, y, count, table, weights, batch, depth, BY_CLASS: tl.constexpr, MODE: tl.constexpr):
    """Clean probability and similarity weight: from the table, or what the launch before found there."""
    if MODE == COUPLED:
        tau, eps = tl.load(weights + rows, mask=live, other=0.0), tl.load(weights + batch + rows, mask=live, other=0.0)
    else:
        cell = tl.minimum(tl.maximum(count, 0), depth - 1)
        if BY_CLASS:
            cell += y * depth
        tau, eps = tl.load(table + 2 * cell, mask=live, other=0.0), tl.load(table + 2 * cell + 1, mask=live, other=0.0)
        if MODE == MEASURE:
            tl.store(weights + rows, tau, mask=live)
            tl.store(weights + batch + rows, eps, mask=live)
    return tau, eps


@triton.jit
def entropy_factors(top, uncertain, terms, MODE: tl.constexpr):
    """Factor of (1 - tau) H in a row's loss, and the derivative of the sum of the losses by the row's max q."""
    if MODE == SAMPLE:
        factor, at_top = top, uncertain
    elif MODE == COUPLED:
        rows = tl.maximum(tl.load(terms + 2), 1.0)
        factor, at_top = top * 0.0 + tl.load(terms) / rows, top * 0.0 + tl.load(terms + 1) / rows
    else:
        factor, at_top = top * 0.0 + 1.0, top * 0.0
    return factor, at_top


@triton.jit
def store_terms(terms, rows, live, batch, top, uncertain, finite):
    """What "batchmean" averages: max q, (1 - tau) H, and 1 for a row that counts."""
    tl.store(terms + rows, tl.where(finite, top, float("nan")), mask=live)
    tl.store(terms + batch + rows, tl.where(finite, uncertain, float("nan")), mask=live)
    tl.store(terms + 2 * batch + rows, top * 0.0 + 1.0, mask=live)


@triton.jit
def store_nothing(terms, loss, prediction, rows, refused, batch, MODE: tl.constexpr):
    """Padding and rows that are out of range: everything but the gradients."""
    zero = tl.zeros_like(rows).to(tl.float32)
    if MODE == MEASURE:
        for i in tl.static_range(3):
            tl.store(terms + i * batch + rows, zero, mask=refused)
    else:
        tl.store(loss + rows, zero, mask=refused)
    if MODE != COUPLED:
        tl.store(prediction + rows, rows * 0, mask=refused)
        tl.store(prediction + batch + rows, rows * 0, mask=refused)


@triton.jit
def store_gradients(dlogits, rows, batch, columns, dz_weak, dz_strong, mask, C: tl.constexpr):
    """Into both halves of (2, B, C)."""
    tl.store(dlogits + rows[:, None] * C + columns, dz_weak, mask=mask)
    tl.store(dlogits + (rows + batch)[:, None] * C + columns, dz_strong, mask=mask)
