"""mixture_posterior on the CPU: one Gaussian mixture in sixteen float32 lanes, all else value by value in float64.

In float32 the log-odds are written as a product of distances from their roots, each root in two parts: their relative
error is then 1e-7 everywhere, and no value changes sides.
"""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit
from numba.extending import intrinsic
from torch import Tensor

from fastlnl.cpu import team
from fastlnl.cpu.native import keep, take
from fastlnl.cpu.simd import WIDTH, exp, fma, lanes, larger, load, load_first, splat, store, store_first
from fastlnl.ops.mixture_em import CERTAIN
from fastlnl.ops.mixture_em.definitions import inner

SERIAL_BELOW = 1 << 17  # values
PIECE = 1 << 12
_inner = njit(inner)


def mixture_posterior(x: Tensor, odds: Tensor, group: Tensor | None, beta: bool, log_odds: bool) -> Tensor:
    out = torch.empty(len(x))
    ids = np.empty(0, np.int64) if group is None else group.numpy()
    run = team.team.run if len(x) >= SERIAL_BELOW else team.alone
    run(posterior, x.detach().numpy(), odds.numpy(), ids, beta, log_odds, out.numpy())
    return out


@intrinsic
def _divide(typing_context: Any, x: Any, y: Any) -> Any:
    """x / y lane by lane."""
    return lanes(lanes, lanes), lambda context, builder, sig, args: builder.fdiv(*args)


@intrinsic
def _one_unless_negative(typing_context: Any, x: Any, y: Any) -> Any:
    """1 where x >= 0, y elsewhere."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        one, zero = (ir.Constant(args[0].type, [value] * WIDTH) for value in (1.0, 0.0))
        return builder.select(builder.fcmp_ordered(">=", args[0], zero), one, args[1])

    return lanes(lanes, lanes), codegen


@intrinsic
def _smaller(typing_context: Any, x: Any, y: Any) -> Any:
    """Lane by lane minimum; a NaN in x stays."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", args[1], args[0]), args[1], args[0])

    return lanes(lanes, lanes), codegen


@intrinsic
def _minus_size(typing_context: Any, x: Any) -> Any:
    """-|x|: the sign bit is set."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        integers = ir.VectorType(ir.IntType(32), WIDTH)
        sign = ir.Constant(integers, [1 << 31] * WIDTH)
        return builder.bitcast(builder.or_(builder.bitcast(args[0], integers), sign), args[0].type)

    return lanes(lanes), codegen


@njit(inline="always")
def _logistic(q):
    e = exp(_minus_size(q))
    return _divide(_one_unless_negative(q, e), splat(np.float32(1)) + e)


@njit
def _near(x):
    """x as the sum of two float32."""
    high = np.float32(x)
    return high, np.float32(x - high)


@njit(error_model="numpy")
def _factors(c, m0, h0, m1, h1):
    """log-odds = (x - r) (k + a (x - s)) + e, for float32: can it be done, r, a, s, k, e."""
    a, gap = h0 - h1, m1 - m0
    b, constant = 2 * h1 * gap, c - h1 * gap * gap  # a w^2 + b w + constant, w = x - m0
    square = b * b - 4 * a * constant
    if square < 0:
        root, other, k, e = -b / (2 * a), -b / (2 * a), 0.0, -square / (4 * a)
    else:
        t = -(b + (np.sqrt(square) if b >= 0 else -np.sqrt(square))) / 2
        root, reach = constant / t if t != 0 else 0.0, 1e3 * (abs(gap) + np.sqrt(-1 / h0) + np.sqrt(-1 / h1))
        other = min(max(t / a, -reach), reach) if a != 0 else 0.0  # where it is far off, k takes its place
        k = a * other - t if a == 0 or other != t / a else 0.0
        e = constant if a == 0 and t == 0 else 0.0
    safe = (a == 0 or 1e-30 < abs(a) < 1e30) and max(abs(m0), abs(m1), abs(root), abs(other), abs(k), abs(e)) < 1e30
    return safe, m0 + root, a, m0 + other, k, e


@njit(inline="always")
def _answer(x, clip, log_odds, low, high, r, r_rest, a, s, s_rest, k, e):
    """Few steps, each of which waits for the one before: their number is what a value costs."""
    v = x + (x - x)  # NaN where the value is not finite
    if clip:
        v = _smaller(larger(v, low), high)
    q = fma((v - r) - r_rest, fma(a, (v - s) - s_rest, k), e)
    q = larger(splat(np.float32(-CERTAIN)), q)  # a NaN is passed over
    return _smaller(q, splat(np.float32(CERTAIN))) if log_odds else _logistic(q)


@njit
def _gaussian_lanes(x, out, start, stop, low, high, log_odds, factors):
    _, root, a, other, k, e = factors
    (r, r_rest), (s, s_rest) = _near(root), _near(other)
    clip = low > -np.inf or high < np.inf
    low, high, r, r_rest = splat(np.float32(low)), splat(np.float32(high)), splat(r), splat(r_rest)
    s, s_rest, a, k, e = splat(s), splat(s_rest), splat(np.float32(a)), splat(np.float32(k)), splat(np.float32(e))
    whole = stop - (stop - start) % WIDTH
    for i in range(start, whole, WIDTH):
        store(out, i, _answer(load(x, i), clip, log_odds, low, high, r, r_rest, a, s, s_rest, k, e))
    if whole < stop:
        last = load_first(x, whole, stop - whole, np.float32(0))
        last = _answer(last, clip, log_odds, low, high, r, r_rest, a, s, s_rest, k, e)
        store_first(out, whole, stop - whole, last)


@njit
def _one(x, odds, beta):
    """Log-odds of one value."""
    c, p0, p1, p2, p3 = odds[0], odds[1], odds[2], odds[3], odds[4]
    low, high, scale = odds[5], odds[6], odds[7]
    if x - x != 0:
        return -CERTAIN
    if beta:
        v = min(max(np.float64(x), p2), p3)
        q = c + p0 * np.log(_inner((v - low) * scale)) + p1 * np.log(_inner((high - v) * scale))
    else:
        v = min(max(np.float64(x), low), high)
        q = c + p1 * (v - p0) ** 2 - p3 * (v - p2) ** 2
    return min(max(q, -CERTAIN), CERTAIN)


@njit("void(int64, float32[::1], float64[:, ::1], int64[::1], boolean, boolean, float32[::1])", cache=True, nogil=True)
def posterior(cursor, x, odds, group, beta, log_odds, out):
    single = len(group) == 0
    factors = _factors(odds[0, 0], odds[0, 1], odds[0, 2], odds[0, 3], odds[0, 4])
    in_lanes = single and not beta and odds[0, 2] < 0 and odds[0, 4] < 0 and factors[0]
    while True:
        start = take(cursor, PIECE)
        if start >= len(x):
            break
        stop = min(len(x), start + PIECE)
        if in_lanes:
            x_, out_ = x.ctypes.data, out.ctypes.data
            _gaussian_lanes(x_, out_, start, stop, odds[0, 5], odds[0, 6], log_odds, factors)
            continue
        for i in range(start, stop):
            g = 0 if single else group[i]
            q = _one(x[i], odds[g], beta) if 0 <= g < len(odds) else -CERTAIN
            e = np.exp(-abs(q))
            out[i] = q if log_odds else (1.0 if q >= 0 else e) / (1.0 + e)
    keep(x)
    keep(out)
