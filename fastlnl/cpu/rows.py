"""One row of logits on the CPU: the sweeps over its columns that the numba kernels are made of.

A row is read from memory once; the later sweeps find it in the first-level cache. Sums over columns are kept in
float32 lanes for `CHUNK` columns and in float64 from there on. Rows are int64 addresses of float32.
"""

import numpy as np
from numba import njit

from fastlnl.cpu.simd import (
    WIDTH,
    exp,
    first_equal,
    floored,
    fma,
    larger,
    largest,
    load,
    load_first,
    only_first,
    splat,
    store,
    store_first,
    total,
)

CHUNK = 256
_f = np.float32
_ZERO = _f(0.0)
_LOWEST = _f(-np.inf)
_FAR = _f(-1e30)  # -inf logits count as this far below the maximum: probability 0, and 0 * log 0 = 0


@njit
def largest_between(z, start, stop):
    """Maximum of the columns start..stop-1; -inf if there are none. NaN is passed over."""
    top = splat(_LOWEST)
    whole = stop - (stop - start) % WIDTH
    for j in range(start, whole, WIDTH):
        top = larger(top, load(z, j))
    if whole < stop:
        top = larger(top, load_first(z, whole, stop - whole, _LOWEST))
    return largest(top)


@njit
def largest_except(z, columns, column):
    """Maximum of the columns but one."""
    return max(largest_between(z, 0, column), largest_between(z, column + 1, columns))


@njit
def first_column(z, columns, value):
    """First column that holds `value`; 0 if none does."""
    whole = columns - columns % WIDTH
    for j in range(0, whole, WIDTH):
        lane = first_equal(load(z, j), value)
        if lane < WIDTH:
            return j + lane
    if whole < columns:
        lane = first_equal(load_first(z, whole, columns - whole, _LOWEST), value)
        if lane < columns - whole:
            return whole + lane
    return 0


@njit
def softmax_sums(z, columns, top, scratch):
    """Write e = exp(x), x = z - top, to scratch; return sum e, sum e x, sum x."""
    s_e, s_ex, s_x = 0.0, 0.0, 0.0
    for start in range(0, columns, CHUNK):
        stop = min(columns, start + CHUNK)
        whole = stop - (stop - start) % WIDTH
        v_e = splat(_ZERO)
        v_ex, v_x = v_e, v_e
        for j in range(start, whole, WIDTH):
            x = floored(load(z, j) - top, _FAR)
            e = exp(x)
            store(scratch, j, e)
            v_e, v_ex, v_x = v_e + e, fma(e, x, v_ex), v_x + x
        if whole < stop:
            x = floored(load_first(z, whole, stop - whole, top) - top, _FAR)
            e = only_first(exp(x), stop - whole)
            store(scratch, whole, e)
            v_e, v_ex, v_x = v_e + e, fma(e, x, v_ex), v_x + x
        s_e, s_ex, s_x = s_e + total(v_e), s_ex + total(v_ex), s_x + total(v_x)
    return s_e, s_ex, s_x


@njit
def softmax_target_sums(z, columns, top, scratch, target):
    """`softmax_sums`, and with a target row r: sum r, sum r x, sum r e, sum e e."""
    s_e, s_ex, s_x, s_r, s_rx, s_re, s_ee = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for start in range(0, columns, CHUNK):
        stop = min(columns, start + CHUNK)
        whole = stop - (stop - start) % WIDTH
        v_e = splat(_ZERO)
        v_ex, v_x, v_r, v_rx, v_re, v_ee = v_e, v_e, v_e, v_e, v_e, v_e
        for j in range(start, whole, WIDTH):
            x, r = floored(load(z, j) - top, _FAR), load(target, j)
            e = exp(x)
            store(scratch, j, e)
            v_e, v_ex, v_x = v_e + e, fma(e, x, v_ex), v_x + x
            v_r, v_rx, v_re, v_ee = v_r + r, fma(r, x, v_rx), fma(r, e, v_re), fma(e, e, v_ee)
        if whole < stop:
            count = stop - whole
            x, r = floored(load_first(z, whole, count, top) - top, _FAR), load_first(target, whole, count, _ZERO)
            e = only_first(exp(x), count)
            store(scratch, whole, e)
            v_e, v_ex, v_x = v_e + e, fma(e, x, v_ex), v_x + x
            v_r, v_rx, v_re, v_ee = v_r + r, fma(r, x, v_rx), fma(r, e, v_re), fma(e, e, v_ee)
        s_e, s_ex, s_x = s_e + total(v_e), s_ex + total(v_ex), s_x + total(v_x)
        s_r, s_rx, s_re, s_ee = s_r + total(v_r), s_rx + total(v_rx), s_re + total(v_re), s_ee + total(v_ee)
    return s_e, s_ex, s_x, s_r, s_rx, s_re, s_ee


@njit
def write_gradient(columns, scratch, gradient, scale, a, f):
    """gradient = a p + f with p = e scale: losses with neither target nor entropy."""
    slope = splat(_f(a * scale))
    level = splat(_f(f))
    whole = columns - columns % WIDTH
    for j in range(0, whole, WIDTH):
        store(gradient, j, fma(slope, load(scratch, j), level))
    if whole < columns:
        store_first(gradient, whole, columns - whole, fma(slope, load(scratch, whole), level))


@njit
def write_gradient_with_entropy(z, columns, top, scratch, gradient, scale, a, d, offset, f):
    """gradient = p (a + d (x + offset)) + f; offset = H - log sum e, so that x + offset = log p + H."""
    a_, d_, offset_, f_ = splat(_f(scale * a)), splat(_f(scale * d)), splat(_f(offset)), splat(_f(f))
    whole = columns - columns % WIDTH
    for j in range(0, whole, WIDTH):
        x = floored(load(z, j) - top, _FAR)
        store(gradient, j, fma(load(scratch, j), fma(d_, x + offset_, a_), f_))
    if whole < columns:
        x = floored(load_first(z, whole, columns - whole, top) - top, _FAR)
        store_first(gradient, whole, columns - whole, fma(load(scratch, whole), fma(d_, x + offset_, a_), f_))


@njit(inline="always")
def _with_target(x, e, r, use, rest, a, c, d, e_coefficient, offset, f):
    t = fma(use, r, rest * e)
    return fma(e, fma(e_coefficient, t, fma(d, x + offset, a)), f - c * t)


@njit
def write_gradient_with_target(
    z, columns, top, scratch, target, gradient, scale, use, keep, update, a, c, d, e, offset, f
):
    """gradient = p (a + e t + d (x + offset)) - c t + f with t = use r + (1 - use) p.

    With `update` the row r becomes keep r + (1 - keep) p. The factor of p = scale exp(x) is part of the coefficients
    before they are rounded to float32.
    """
    use_, rest_, offset_ = splat(_f(use)), splat(_f(scale * (1 - use))), splat(_f(offset))
    keep_, fade_ = splat(_f(keep)), splat(_f(scale * (1 - keep)))
    a_, d_, e_ = splat(_f(scale * a)), splat(_f(scale * d)), splat(_f(scale * e))
    c_, f_ = splat(_f(c)), splat(_f(f))
    whole = columns - columns % WIDTH
    for j in range(0, whole, WIDTH):
        x, e_x, r = floored(load(z, j) - top, _FAR), load(scratch, j), load(target, j)
        store(gradient, j, _with_target(x, e_x, r, use_, rest_, a_, c_, d_, e_, offset_, f_))
        if update:
            store(target, j, fma(keep_, r, fade_ * e_x))
    if whole < columns:
        count = columns - whole
        x, r = floored(load_first(z, whole, count, top) - top, _FAR), load_first(target, whole, count, _ZERO)
        e_x = load(scratch, whole)
        store_first(gradient, whole, count, _with_target(x, e_x, r, use_, rest_, a_, c_, d_, e_, offset_, f_))
        if update:
            store_first(target, whole, count, fma(keep_, r, fade_ * e_x))


@njit(inline="always")
def gradient_at(x, p, t, a, b, c, d, e, offset, f):
    """One entry of the gradient in float64: p at the label less b, which often is nearly as large."""
    return p * (a + e * t + d * (x + offset)) - b - c * t + f


@njit
def fill(row, columns, value):
    """Write `value` to every column."""
    v = splat(_f(value))
    whole = columns - columns % WIDTH
    for j in range(0, whole, WIDTH):
        store(row, j, v)
    if whole < columns:
        store_first(row, whole, columns - whole, v)
