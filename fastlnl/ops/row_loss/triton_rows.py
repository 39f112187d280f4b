"""What the row kernels on the GPU have in common: checks, repeated ids, from sums to coefficients, statistics."""

import triton
import triton.language as tl

from fastlnl.ops.row_loss import contract

PADDING = tl.constexpr(contract.PADDING)
NO_TARGET, DENSE, TABLE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
FAR = tl.constexpr(-1e30)  # -inf logits count as this far below the maximum: probability 0, and 0 * log 0 = 0


@triton.jit
def pick(values, at):
    """The value at the one position that `at` marks."""
    return tl.sum(tl.where(at, values, 0), 0)


@triton.jit
def below(z, top):
    """z - top, at most FAR below; NaN stays NaN."""
    x = z - top
    return tl.where((x < FAR) | (z == float("-inf")), FAR, x)


@triton.jit
def label_of(label, rows, inside, LABEL: tl.constexpr):
    return tl.load(label + rows, mask=inside, other=0) if LABEL else rows * 0


@triton.jit
def check_rows(rows, inside, label, index, errors, num_samples, C: tl.constexpr, LABEL: tl.constexpr,
               INDEX: tl.constexpr, TARGET: tl.constexpr):  # fmt: skip
    """Labels, ids, and which rows have both in range; the first that has not is reported, if none was before.

    Padding is not in range and nothing to report.
    """
    y = label_of(label, rows, inside, LABEL)
    sample = tl.load(index + rows, mask=inside, other=0) if INDEX else rows
    if TARGET == TABLE:
        inside = inside & (sample != PADDING)
    bad_label = inside & ((y < 0) | (y >= C))
    bad = bad_label
    if TARGET == TABLE:
        bad = bad | (inside & ((sample < 0) | (sample >= num_samples)))
    if tl.max(bad.to(tl.int32), 0) > 0:
        at = rows == tl.min(tl.where(bad, rows, 9223372036854775807), 0)
        kind = pick(tl.where(bad_label, rows * 0 + 1, rows * 0 + 2), at)
        if tl.atomic_cas(errors, kind * 0, kind) == 0:
            tl.store(errors + 1, pick(rows, at))
            tl.store(errors + 2, pick(sample, at))
            tl.store(errors + 3, pick(tl.where(bad_label, y, sample), at))
    return y, sample, inside & (bad == 0)


@triton.jit
def occurrences(sample, after, label, index, batch, C: tl.constexpr, LABEL: tl.constexpr, SCAN: tl.constexpr):
    """Of the valid positions that hold the same id: the lowest above `after`, and the highest."""
    following, last = sample * 0 + 9223372036854775807, sample * 0 - 1
    for start in range(0, batch, SCAN):
        at = start + tl.arange(0, SCAN).to(tl.int64)
        ids = tl.load(index + at, mask=at < batch, other=-1)
        y = label_of(label, at, at < batch, LABEL)
        same = (sample[:, None] == ids[None, :]) & ((y >= 0) & (y < C))[None, :]
        above = same & (at[None, :] > after[:, None])
        following = tl.minimum(following, tl.min(tl.where(above, at[None, :], 9223372036854775807), 1))
        last = tl.maximum(last, tl.max(tl.where(same, at[None, :], -1), 1))
    return following, last


@triton.jit
def finish_rows(rows, live, y, s_e, s_ex, s_x, x_y, p_use, r_use, s_r, s_rx, s_re, s_ee, weight, grad_scale, loss,
                q0, q1, q2, q3, C: tl.constexpr, COEFFICIENTS: tl.constexpr, TARGET: tl.constexpr,
                WEIGHT: tl.constexpr):  # fmt: skip
    """From the sums of a row to its loss, which is stored, and its scaled coefficients.

    Losses of the label alone are powers and logarithms of a few numbers: they are computed in float64, as on the CPU.
    """
    NUMBER: tl.constexpr = s_e.dtype
    EXACT: tl.constexpr = tl.float64 if TARGET == NO_TARGET else s_e.dtype
    log_sum = tl.log(s_e)
    scale = 1.0 / s_e
    entropy = log_sum - s_ex * scale
    nll = log_sum - x_y
    target_sum = r_use * s_r + p_use
    target_p = (r_use * s_re + p_use * s_ee * scale) * scale
    target_logp = r_use * (s_rx - log_sum * s_r) - p_use * entropy
    value, a, b, c, d, e, f = COEFFICIENTS(
        nll.to(EXACT), tl.exp(-nll).to(EXACT), entropy.to(EXACT), target_sum, target_p, target_logp,
        (s_x - C * log_sum).to(EXACT), (s_e * 0.0 + C).to(EXACT), q0, q1, q2, q3)  # fmt: skip
    finite = (s_e > 0) & (s_e < float("inf")) & (tl.abs(s_x) < float("inf"))
    w = tl.load(weight + rows, mask=live, other=0.0).to(NUMBER) if WEIGHT else s_e * 0.0 + 1.0
    w = tl.where(finite, w, float("nan"))
    tl.store(loss + rows, value * w, mask=live)
    w = w * grad_scale
    a, b, c = (a * w).to(NUMBER), (b * w).to(NUMBER), (c * w).to(NUMBER)
    d, e, f = (d * w).to(NUMBER), (e * w).to(NUMBER), (f * w).to(NUMBER)
    return scale, entropy, nll, finite, a, b, c, d, e, f


@triton.jit
def store_stats(stats, prediction, rows, live, batch, nll, confidence, margin, entropy, column):
    """Row statistics, (5, B) and (B,)."""
    tl.store(stats + rows, nll, mask=live)
    tl.store(stats + batch + rows, tl.exp(-nll), mask=live)
    tl.store(stats + 2 * batch + rows, confidence, mask=live)
    tl.store(stats + 3 * batch + rows, margin, mask=live)
    tl.store(stats + 4 * batch + rows, entropy, mask=live)
    tl.store(prediction + rows, column.to(tl.int64), mask=live)
