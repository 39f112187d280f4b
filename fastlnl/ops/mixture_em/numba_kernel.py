"""mixture_em on the CPU: a thread takes a group, packs the points that count, and iterates on them."""

import math

import numpy as np
import torch
from numba import njit

from fastlnl.cpu import team
from fastlnl.cpu.native import take
from fastlnl.ops.mixture_em import CERTAIN, FAMILIES, INITS, EMInput, EMOptions, MixtureFit
from fastlnl.ops.mixture_em.definitions import LLOYD_STEPS, compiled
from fastlnl.ops.row_loss.numba_coefficients import NAMESPACE

SERIAL_BELOW = 1 << 15  # points
STRIP = 512  # points whose shares are computed together, in vectors, before they are summed up in order
EMPTY, TOO_FEW, ALL_EQUAL, COLLAPSED, TWO_VALUES = 1, 2, 4, 8, 16
LLOYD, QUANTILE = INITS.index("lloyd"), INITS.index("quantile")
GAUSSIAN, MOMENTS = FAMILIES.index("gaussian"), FAMILIES.index("beta_moments")

_E = tuple(1 / math.factorial(i) for i in range(13))  # of |x| <= log(2) / 2, the next one is 2e-16
_L = tuple(2 / (2 * i + 1) for i in range(10))  # of |s| <= 0.1716, the next one is 2e-17 of the sum
_ROUND = 1.5 * 2.0**52  # adding it leaves round(x) in the low bits


@njit(error_model="numpy")
def exp_of_negative(x):
    """exp of x <= 0 to 2^-52, 0 below -700; unlike the library's it is one straight line, so loops run in vectors."""
    shifted = x * 1.4426950408889634 + _ROUND
    k = shifted - _ROUND
    r = (x - k * 0.6931471803691238) - k * 1.9082149292705877e-10
    y = (((_E[12] * r + _E[11]) * r + _E[10]) * r + _E[9]) * r + _E[8]
    y = ((((y * r + _E[7]) * r + _E[6]) * r + _E[5]) * r + _E[4]) * r + _E[3]
    y = ((y * r + _E[2]) * r + _E[1]) * r + _E[0]
    bits = np.float64(y).view(np.int64) + (np.float64(shifted).view(np.int64) << 52)
    return np.int64(bits).view(np.float64) if x > -700.0 else 0.0


@njit(error_model="numpy")
def log_up_to_two(x):
    """log of x in [1, 2] to 2^-52: 2 artanh((x - 1) / (x + 1)), with half of x where that is closer to 1."""
    half = x > 1.4142135623730951
    x = 0.5 * x if half else x
    s = (x - 1.0) / (x + 1.0)
    q = s * s
    y = ((((_L[9] * q + _L[8]) * q + _L[7]) * q + _L[6]) * q + _L[5]) * q + _L[4]
    y = (((y * q + _L[3]) * q + _L[2]) * q + _L[1]) * q + _L[0]
    return s * y + (0.6931471805599453 if half else 0.0)


_formulas = compiled(NAMESPACE, njit(error_model="numpy"))
_straight = compiled(
    {**NAMESPACE, "exp": exp_of_negative, "log": log_up_to_two}, njit(error_model="numpy", inline="always")
)["share"]
_share, _floored_share, _inner = _formulas["share"], _formulas["floored_share"], _formulas["inner"]
_gaussian_constants, _gaussian_step = _formulas["gaussian_constants"], _formulas["gaussian_step"]
_gaussian_apart, _gaussian_collapsed, _gaussian_odds = (
    _formulas["gaussian_apart"], _formulas["gaussian_collapsed"], _formulas["gaussian_odds"]
)  # fmt: skip
_beta_constant, _beta_moments, _beta_likelihood = (
    _formulas["beta_constant"], _formulas["beta_moments"], _formulas["beta_likelihood"]
)  # fmt: skip
_beta_collapsed, _beta_odds = _formulas["beta_collapsed"], _formulas["beta_odds"]


def mixture_em(points: EMInput, options: EMOptions) -> MixtureFit:
    groups = len(points.offset) - 1
    none = torch.empty(0, 0, dtype=torch.float64)
    fitted, odds = torch.empty(groups, 7, dtype=torch.float64), torch.empty(groups, 8, dtype=torch.float64)
    info, cut = torch.empty(groups, 3, dtype=torch.int64), torch.empty(groups, dtype=torch.float64)
    run = team.team.run if groups > 1 and len(points.value) >= SERIAL_BELOW else team.alone
    run(
        fit_groups, points.value.numpy(), points.counts.numpy(), points.offset.numpy(), points.limits.numpy(),
        (none if points.start is None else points.start).numpy(),
        (none if points.draw is None else points.draw).numpy(),
        FAMILIES.index(options.family), INITS.index(options.init), options.reg_covar, options.tol, options.max_iter,
        options.clip, fitted.numpy(), info.numpy(), odds.numpy(), cut.numpy(),
    )  # fmt: skip
    return MixtureFit(fitted, info, odds, cut)


@njit(error_model="numpy")
def pack(value, count, low, high, clip, beta, n, z, u, v):
    """Points that count, mapped by the limits, and for Beta log x and log(1 - x); returns how many, and the sum."""
    width = high - low if high > low else 1.0
    m, total = 0, 0
    for i in range(len(value)):
        if count[i] > 0:
            at = (value[i] - low) / width
            if clip:
                at = min(max(at, 0.0), 1.0)
            n[m], z[m] = count[i], at
            if beta:
                rest = min(max((high - value[i]) / width, 0.0), 1.0)
                u[m], v[m] = np.log(_inner(at)), np.log(_inner(rest))
            m, total = m + 1, total + count[i]
    return m, float(total)


@njit(error_model="numpy")
def pick(n, z, power, centre, target):
    """The first point at which the running sum of n |z - centre|^power exceeds `target`; the last if none."""
    running = 0.0
    for i in range(len(n)):
        running += n[i] * (z[i] - centre) ** 2 if power == 2 else n[i]
        if running > target:
            return z[i]
    return z[-1]


@njit(error_model="numpy")
def lloyd(n, z, total, middle):
    """2-means from a cut: the cut where it settles. Points ascend, so a sum up to any cut is looked up."""
    below, s = np.zeros(len(n) + 1), np.zeros(len(n) + 1)
    for i in range(len(n)):
        below[i + 1], s[i + 1] = below[i] + n[i], s[i] + n[i] * z[i]
    before = -1.0
    for _ in range(LLOYD_STEPS):
        k = np.searchsorted(z, middle, side="right")
        if below[k] * (below[k] - total) * (below[k] - before) == 0:  # a side is empty, or nothing moved
            break
        middle, before = (s[k] / below[k] + (s[-1] - s[k]) / (total - below[k])) / 2, below[k]
    return middle


@njit(error_model="numpy")
def hard_split(n, z, total, init, draw):
    """The z up to which a point starts in the lower component."""
    middle = (z[0] + z[-1]) / 2
    if init == QUANTILE:
        cut = pick(n, z, 0, 0.0, total / 2)
        return cut if cut < z[-1] else middle
    if init != LLOYD:
        one = pick(n, z, 0, 0.0, draw[0] * total)
        far = 0.0
        for i in range(len(n)):
            far += n[i] * (z[i] - one) ** 2
        middle = (one + pick(n, z, 2, one, draw[1] * far)) / 2
    return lloyd(n, z, total, middle)


@njit(error_model="numpy")
def gaussian_start(n, z, total, cut, reg_covar, smallest):
    """The M step after a hard split."""
    k = np.searchsorted(z, cut, side="right")
    s = np.zeros(6)
    for side, first, last in ((0, 0, k), (3, k, len(n))):
        for i in range(first, last):
            w = n[i] * z[i]
            s[side], s[side + 1], s[side + 2] = s[side] + n[i], s[side + 1] + w, s[side + 2] + w * z[i]
    w0, m0, v0 = _gaussian_step(s[0], s[1], s[2], 0.0, total, reg_covar, smallest)
    w1, m1, v1 = _gaussian_step(s[3], s[4], s[5], 0.0, total, reg_covar, smallest)
    return w0, w1, m0, m1, v0, v1


@njit(error_model="numpy")
def gaussian_shares(z, m0, m1, k0, k1, h0, h1, r0, r1, log_sum):
    """Posteriors of a strip of points."""
    for i in range(len(z)):
        d0, d1 = z[i] - m0, z[i] - m1
        r0[i], r1[i], log_sum[i] = _straight(k0 + h0 * (d0 * d0), k1 + h1 * (d1 * d1))


@njit(error_model="numpy")
def gaussian_em(n, z, total, p, reg_covar, smallest, strip):
    """Mean log-likelihood under the parameters, and the parameters after one step."""
    w0, w1, m0, m1, v0, v1 = p
    k0, h0 = _gaussian_constants(w0, v0)
    k1, h1 = _gaussian_constants(w1, v1)
    bound, a0, a1, a2, b0, b1, b2 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for first in range(0, len(n), STRIP):
        at, number = z[first : first + STRIP], n[first : first + STRIP]
        gaussian_shares(at, m0, m1, k0, k1, h0, h1, strip[0], strip[1], strip[2])
        for i in range(len(at)):
            d0, d1 = at[i] - m0, at[i] - m1
            r0, r1, bound = number[i] * strip[0, i], number[i] * strip[1, i], bound + number[i] * strip[2, i]
            a0, a1, a2 = a0 + r0, a1 + r0 * d0, a2 + r0 * (d0 * d0)
            b0, b1, b2 = b0 + r1, b1 + r1 * d1, b2 + r1 * (d1 * d1)
    w0, m0, v0 = _gaussian_step(a0, a1, a2, m0, total, reg_covar, smallest)
    w1, m1, v1 = _gaussian_step(b0, b1, b2, m1, total, reg_covar, smallest)
    return bound / total, (w0, w1, m0, m1, v0, v1)


@njit(error_model="numpy")
def beta_em(n, z, u, v, total, p, moments):
    """The same for Beta; u = log x, v = log(1 - x)."""
    w0, w1, a0, a1, b0, b1 = p
    k0, k1 = _beta_constant(w0, a0, b0), _beta_constant(w1, a1, b1)
    bound, s0, s1, s2, t0, t1, t2 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(len(n)):
        l0, l1 = k0 + (a0 - 1) * u[i] + (b0 - 1) * v[i], k1 + (a1 - 1) * u[i] + (b1 - 1) * v[i]
        r0, r1, log_sum = _floored_share(l0, l1) if moments else _share(l0, l1)
        d = _inner(z[i]) - 0.5
        f, g = (d, d * d) if moments else (u[i], v[i])
        r0, r1, bound = n[i] * r0, n[i] * r1, bound + n[i] * log_sum
        s0, s1, s2 = s0 + r0, s1 + r0 * f, s2 + r0 * g
        t0, t1, t2 = t0 + r1, t1 + r1 * f, t2 + r1 * g
    if moments:
        a0, b0 = _beta_moments(s0, s1, s2)
        a1, b1 = _beta_moments(t0, t1, t2)
        b0, a1 = 1.1 if b0 < 1.02 else b0, 1.1 if a1 < 1.02 else a1
    else:
        a0, b0 = _beta_likelihood(s1 / (s0 + 1e-300), s2 / (s0 + 1e-300), a0, b0)
        a1, b1 = _beta_likelihood(t1 / (t0 + 1e-300), t2 / (t0 + 1e-300), a1, b1)
    both = max(s0 + t0, 1e-300)
    return bound / total, (s0 / both, t0 / both, a0, a1, b0, b1)


@njit(error_model="numpy")
def two_values(z):
    i = 0
    while i < len(z) and z[i] == z[0]:
        i += 1
    return i == len(z) or z[i] == z[-1]


@njit(
    "void(int64, float64[::1], int64[::1], int64[::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], int64, int64,"
    "float64, float64, int64, boolean, float64[:, ::1], int64[:, ::1], float64[:, ::1], float64[::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def fit_groups(cursor, value, count, offset, limits, start, draw, family, init, reg_covar, tol, max_iter, clip, fitted,
               info, odds, cut):  # fmt: skip
    gaussian = family == GAUSSIAN
    longest = 0
    for g in range(len(fitted)):
        longest = max(longest, offset[g + 1] - offset[g])
    scratch, strip = np.empty((4, longest)), np.empty((3, STRIP))
    while True:
        g = take(cursor, 1)
        if g >= len(fitted):
            break
        low, high = limits[g]
        first, last = offset[g], offset[g + 1]
        n, z, u, v = scratch[0], scratch[1], scratch[2], scratch[3]
        m, total = pack(value[first:last], count[first:last], low, high, clip or not gaussian, not gaussian, n, z, u, v)
        n, z, u, v = n[:m], z[:m], u[:m], v[:m]
        status = EMPTY if total == 0 else TOO_FEW if total < 4 else 0
        if m > 0 and z[0] == z[-1]:
            status |= ALL_EQUAL
        bad = status != 0
        bound, steps, converged, collapsed = 0.0, 0, 0, False
        smallest = 1e-300 if m == 0 else 1e-12 * (z[-1] - z[0]) ** 2 + 1e-300
        given = len(start) > 0
        for i in range(6):
            given = given and not np.isnan(start[g, i])
        p, split = (1.0, 0.0, 0.0, 0.0, 1.0, 1.0), z[-1] if m > 0 else 0.0
        if given:
            p = (start[g, 0], start[g, 1], start[g, 2], start[g, 3], start[g, 4], start[g, 5])
        elif not bad:
            split = hard_split(n, z, total, init, draw[g])
            p = gaussian_start(n, z, total, split, reg_covar, smallest)
        if bad and gaussian:
            w, mean, variance = gaussian_start(n, z, max(total, 1.0), np.inf, reg_covar, smallest)[::2]
            p = (w, w, mean, mean, variance, variance)
        while not bad and steps < max_iter and converged == 0:
            before = bound
            if gaussian:
                bound, p = gaussian_em(n, z, total, p, reg_covar, smallest, strip)
            else:
                bound, p = beta_em(n, z, u, v, total, p, family == MOMENTS)
            steps += 1
            converged = 1 if steps > 1 and abs(bound - before) < tol else 0
        w0, w1, a0, a1, b0, b1 = p
        if bad:
            w0, w1 = 1.0, 0.0
        elif gaussian:
            if a0 > a1 and _gaussian_apart(a0, a1, b0, b1):
                w0, w1, a0, a1, b0, b1 = w1, w0, a1, a0, b1, b0
            collapsed = _gaussian_collapsed(w0, w1, a0, a1, b0, b1)
        else:
            collapsed = _beta_collapsed(w0, w1, a0, a1, b0, b1)
        if collapsed:
            status |= COLLAPSED
        if not bad and two_values(z):
            status |= TWO_VALUES
        fitted[g] = (w0, w1, a0, a1, b0, b1, bound)
        info[g] = (steps, converged, status)
        width = high - low if high > low else 1.0
        odds[g], cut[g] = 0.0, low + width * split
        if bad or collapsed:
            odds[g, 0] = CERTAIN
        elif gaussian:
            odds[g, :5] = _gaussian_odds(w0, w1, a0, a1, b0, b1, low, width)
            odds[g, 5], odds[g, 6] = (low, high) if clip else (-np.inf, np.inf)
        else:
            odds[g, :5] = _beta_odds(w0, w1, a0, a1, b0, b1, low, width)
            odds[g, 5:] = (low, high, 1 / width)
