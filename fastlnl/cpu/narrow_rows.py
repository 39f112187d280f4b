"""Rows of at most `NARROW` columns on the CPU: exponentials in float32 lanes, everything else in float64.

In a narrow row one probability is often nearly 1, and what losses make of it (1 - p, 1 - <t, p>, p - onehot) cancels. A
few columns cost no more in float64 than in lanes that are mostly masked.
"""

import numpy as np
from numba import njit

from fastlnl.cpu.native import as_float32
from fastlnl.cpu.rows import gradient_at
from fastlnl.cpu.simd import WIDTH, exp, floored, load_first, store

NARROW = 32
_FAR = np.float32(-1e30)  # as in rows.py


@njit
def narrow_sums(z, columns, top, scratch, target):
    """`rows.softmax_target_sums`; without a target (0) its sums are 0."""
    for j in range(0, columns, WIDTH):
        store(scratch, j, exp(floored(load_first(z, j, columns - j, top) - top, _FAR)))
    logits, exps, row = as_float32(z), as_float32(scratch), as_float32(target)
    s_e, s_ex, s_x, s_r, s_rx, s_re, s_ee = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(columns):
        x, e = distance(logits[j], top), np.float64(exps[j])
        s_e, s_ex, s_x = s_e + e, s_ex + e * x, s_x + x
        if target != 0:
            r = np.float64(row[j])
            s_r, s_rx, s_re, s_ee = s_r + r, s_rx + r * x, s_re + r * e, s_ee + e * e
    return s_e, s_ex, s_x, s_r, s_rx, s_re, s_ee


@njit
def write_narrow_gradient(z, columns, top, scratch, target, gradient, scale, use, keep, update, a, c, d, e, offset, f):
    """`rows.write_gradient_with_target`; without a target (0) t is 0."""
    logits, exps, row, dz = as_float32(z), as_float32(scratch), as_float32(target), as_float32(gradient)
    for j in range(columns):
        x, p, t = distance(logits[j], top), scale * exps[j], 0.0
        if target != 0:
            r = np.float64(row[j])
            t = use * r + (1 - use) * p
            if update:
                row[j] = keep * r + (1 - keep) * p
        dz[j] = gradient_at(x, p, t, a, 0.0, c, d, e, offset, f)


@njit(inline="always")
def distance(logit, top):
    """logit - top, at most 1e30 below; NaN stays NaN."""
    x = np.float64(logit) - np.float64(top)
    return -1e30 if x < -1e30 else x
