"""The sweeps over the columns of two rows, one of each view; rows are int64 addresses of float32.

Sums are kept in float32 lanes for `CHUNK` columns and in float64 from there on, as in `cpu/rows.py`.
"""

# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated, no-untyped-call, assignment"

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from fastlnl.cpu.native import as_float32
from fastlnl.cpu.rows import CHUNK
from fastlnl.cpu.simd import (
    WIDTH,
    _splat,
    exp,
    floored,
    fma,
    lanes,
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
from fastlnl.cpu.words import bits_of, floats_of, numbers
from fastlnl.ops import two_view_loss as contract

_f = np.float32
_ZERO, _FAR = _f(0.0), _f(-1e30)
LOW, HIGH = _f(contract.FLOOR), _f(1 - contract.FLOOR)


@intrinsic
def clamped(typing_context: Any, x: Any, low: Any, high: Any) -> Any:
    """x limited to [low, high]; NaN stays NaN."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, low, high = args[0], _splat(builder, args[1]), _splat(builder, args[2])
        x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
        return builder.select(builder.fcmp_ordered(">", x, high), high, x)

    return lanes(lanes, types.float32, types.float32), codegen


@intrinsic
def kept_inside(typing_context: Any, x: Any, low: Any, high: Any) -> Any:
    """x where it lies in [low, high], elsewhere 0; NaN stays NaN."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, low, high = args[0], _splat(builder, args[1]), _splat(builder, args[2])
        outside = builder.or_(builder.fcmp_ordered("<", x, low), builder.fcmp_ordered(">", x, high))
        return builder.select(outside, builder.fsub(x, x), x)

    return lanes(lanes, types.float32, types.float32), codegen


_LN2_HIGH, _LN2_LOW = _f(0.693359375), _f(-2.12194440e-4)
_ROOT_HALF, _ONE = 0x3F3504F3, 0x3F800000  # as bits
# Polynomial of (log(1 + m) - m + m^2 / 2) / m^3 between sqrt(1/2) - 1 and sqrt(2) - 1, Cephes logf (S. Moshier).
_P0, _P1, _P2 = _f(7.0376836292e-2), _f(-1.1514610310e-1), _f(1.1676998740e-1)
_P3, _P4, _P5 = _f(-1.2420140846e-1), _f(1.4249322787e-1), _f(-1.6668057665e-1)
_P6, _P7, _P8 = _f(2.0000714765e-1), _f(-2.4999993993e-1), _f(3.3333331174e-1)


@njit(inline="always")
def log(x):
    """log of positive normal numbers to about 1 ulp."""
    bits = bits_of(x) + (_ONE - _ROOT_HALF)
    e = numbers(bits >> 23) - _f(127.0)
    m = floats_of(((bits << 9) >> 9) + _ROOT_HALF) - _f(1.0)
    square = m * m
    y = fma(splat(_P0), m, splat(_P1))
    y = fma(y, m, splat(_P2))
    y = fma(y, m, splat(_P3))
    y = fma(y, m, splat(_P4))
    y = fma(y, m, splat(_P5))
    y = fma(y, m, splat(_P6))
    y = fma(y, m, splat(_P7))
    y = fma(y, m, splat(_P8))
    y = fma(y * m, square, e * _LN2_LOW)
    y = fma(square, splat(_f(-0.5)), y)
    return fma(e, splat(_LN2_HIGH), m + y)


@njit
def apart_sums(weak, strong, columns):
    """Sums of zs - zw and of its square; not finite if a logit is not."""
    s_d, s_dd = 0.0, 0.0
    for start in range(0, columns, CHUNK):
        stop = min(columns, start + CHUNK)
        whole = stop - (stop - start) % WIDTH
        v_d = splat(_ZERO)
        v_dd = v_d
        for j in range(start, whole, WIDTH):
            d = load(strong, j) - load(weak, j)
            v_d, v_dd = v_d + d, fma(d, d, v_dd)
        if whole < stop:
            d = load_first(strong, whole, stop - whole, _ZERO) - load_first(weak, whole, stop - whole, _ZERO)
            v_d, v_dd = v_d + d, fma(d, d, v_dd)
        s_d, s_dd = s_d + total(v_d), s_dd + total(v_dd)
    return s_d, s_dd


@njit
def both_sums(weak, strong, columns, top_w, top_s, exps_w, exps_s):
    """Write exp(z - top) of both views to scratch; return its sums and those of `apart_sums`."""
    s_w, s_s, s_d, s_dd = 0.0, 0.0, 0.0, 0.0
    for start in range(0, columns, CHUNK):
        stop = min(columns, start + CHUNK)
        whole = stop - (stop - start) % WIDTH
        v_w = splat(_ZERO)
        v_s, v_d, v_dd = v_w, v_w, v_w
        for j in range(start, whole, WIDTH):
            w, s = load(weak, j), load(strong, j)
            d, e_w, e_s = s - w, exp(floored(w - top_w, _FAR)), exp(floored(s - top_s, _FAR))
            store(exps_w, j, e_w)
            store(exps_s, j, e_s)
            v_w, v_s, v_d, v_dd = v_w + e_w, v_s + e_s, v_d + d, fma(d, d, v_dd)
        if whole < stop:
            count = stop - whole
            w, s = load_first(weak, whole, count, top_w), load_first(strong, whole, count, top_s)
            d, e_w, e_s = s - w, exp(floored(w - top_w, _FAR)), exp(floored(s - top_s, _FAR))
            d, e_w, e_s = only_first(d, count), only_first(e_w, count), only_first(e_s, count)
            store(exps_w, whole, e_w)
            store(exps_s, whole, e_s)
            v_w, v_s, v_d, v_dd = v_w + e_w, v_s + e_s, v_d + d, fma(d, d, v_dd)
        s_w, s_s, s_d, s_dd = s_w + total(v_w), s_s + total(v_s), s_d + total(v_d), s_dd + total(v_dd)
    return s_w, s_s, s_d, s_dd


@njit(inline="always")
def _mean(e_w, e_s, scale_w, scale_s):
    """Both probabilities, and the mean of the clamped ones."""
    p_w, p_s = e_w * scale_w, e_s * scale_s
    return p_w, p_s, (clamped(p_w, LOW, HIGH) + clamped(p_s, LOW, HIGH)) * _f(0.5)


@njit
def mean_sums(columns, exps_w, exps_s, scale_w, scale_s, logs):
    """Write log q + 1 to scratch; return sum q log q, max q, and of both views sum p (log q + 1) inside the clamp."""
    scale_w, scale_s, one = splat(_f(scale_w)), splat(_f(scale_s)), _f(1.0)
    s_q, s_w, s_s, top = 0.0, 0.0, 0.0, splat(_ZERO)
    for start in range(0, columns, CHUNK):
        stop = min(columns, start + CHUNK)
        whole = stop - (stop - start) % WIDTH
        v_q = splat(_ZERO)
        v_w, v_s = v_q, v_q
        for j in range(start, whole, WIDTH):
            p_w, p_s, q = _mean(load(exps_w, j), load(exps_s, j), scale_w, scale_s)
            log_q = log(q)
            top, v_q, l = larger(top, q), fma(q, log_q, v_q), log_q + one
            store(logs, j, l)
            v_w, v_s = fma(kept_inside(p_w, LOW, HIGH), l, v_w), fma(kept_inside(p_s, LOW, HIGH), l, v_s)
        if whole < stop:  # past the end p is 0 and q the floor
            p_w, p_s, q = _mean(load(exps_w, whole), load(exps_s, whole), scale_w, scale_s)
            log_q = log(q)
            top, v_q, l = larger(top, q), v_q + only_first(q * log_q, stop - whole), log_q + one
            store(logs, whole, l)
            v_w, v_s = fma(kept_inside(p_w, LOW, HIGH), l, v_w), fma(kept_inside(p_s, LOW, HIGH), l, v_s)
        s_q, s_w, s_s = s_q + total(v_q), s_w + total(v_w), s_s + total(v_s)
    return s_q, largest(top), s_w, s_s


@njit
def highest_mean(columns, exps_w, exps_s, scale_w, scale_s, top):
    """First column whose q is `top`, the maximum `mean_sums` found by the same arithmetic."""
    e_w, e_s, scale_w, scale_s = as_float32(exps_w), as_float32(exps_s), _f(scale_w), _f(scale_s)
    for j in range(columns):
        p_w, p_s = min(max(e_w[j] * scale_w, LOW), HIGH), min(max(e_s[j] * scale_s, LOW), HIGH)
        if (p_w + p_s) * _f(0.5) >= top:
            return j
    return 0


@njit
def write_gradients(
    weak, strong, columns, exps_w, exps_s, scale_w, scale_s, logs, dweak, dstrong, level_w, level_s, slope, pull
):
    """gradient = p level + slope p (log q + 1) inside the clamp + pull (this view's z - the other's), of both views."""
    scale_w, scale_s = splat(_f(scale_w)), splat(_f(scale_s))
    level_w, level_s, slope, pull = splat(_f(level_w)), splat(_f(level_s)), splat(_f(slope)), splat(_f(pull))
    whole = columns - columns % WIDTH
    for j in range(0, whole, WIDTH):
        p_w, p_s, l = load(exps_w, j) * scale_w, load(exps_s, j) * scale_s, load(logs, j) * slope
        d = (load(strong, j) - load(weak, j)) * pull
        store(dweak, j, fma(p_w, level_w, fma(kept_inside(p_w, LOW, HIGH), l, splat(_ZERO) - d)))
        store(dstrong, j, fma(p_s, level_s, fma(kept_inside(p_s, LOW, HIGH), l, d)))
    if whole < columns:
        count = columns - whole
        p_w, p_s, l = load(exps_w, whole) * scale_w, load(exps_s, whole) * scale_s, load(logs, whole) * slope
        d = (load_first(strong, whole, count, _ZERO) - load_first(weak, whole, count, _ZERO)) * pull
        store_first(dweak, whole, count, fma(p_w, level_w, fma(kept_inside(p_w, LOW, HIGH), l, splat(_ZERO) - d)))
        store_first(dstrong, whole, count, fma(p_s, level_s, fma(kept_inside(p_s, LOW, HIGH), l, d)))
