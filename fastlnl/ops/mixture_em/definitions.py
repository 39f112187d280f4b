"""The formulas of the two families, written once: torch runs them, numba and Triton compile the same source.

Plain arithmetic with `log`, `exp`, `where` and `larger`, like a loss's coefficient function. z is a value mapped to
(value - low) / (high - low). A component is (weight, a, b): mean and variance, or alpha and beta.
"""

# mypy: disable-error-code="no-untyped-def"
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from fastlnl.arithmetic import exp, larger, log, where

LLOYD_STEPS = 100


def share(l0, l1):
    """Posterior of each component and the log of the sum, from weighted log-densities."""
    gap = l0 - l1
    e = exp(-larger(gap, -gap))
    r = 1 / (1 + e)
    return where(gap > 0, r, e * r), where(gap > 0, e * r, r), larger(l0, l1) + log(1 + e)


# -- Gaussian ----------------------------------------------------------------------------------------------------


def gaussian_constants(weight, variance):
    """log density = k + h (z - mean)^2."""
    return log(larger(weight, 1e-300)) - 0.5 * log(variance) - 0.9189385332046727, -0.5 / variance


def gaussian_step(s0, s1, s2, pivot, total, reg_covar, smallest):
    """Component from sums of r, r (z - pivot), r (z - pivot)^2: scikit-learn's M step."""
    n = s0 + 2.220446049250313e-15  # ten units of float64
    shift = s1 / n
    variance = larger(s2 / n - shift * shift, s0 * 0.0)  # not below zero by rounding
    return n / total, pivot + shift, larger(variance + reg_covar, smallest)


def gaussian_apart(m0, m1, v0, v1):
    """Means further from each other than a thousandth of the wider deviation: which is lower is then no rounding."""
    return (m1 - m0) * (m1 - m0) > 1e-6 * larger(v0, v1)


def gaussian_collapsed(w0, w1, m0, m1, v0, v1):
    """A weight under 1e-3, or means that are not apart."""
    return (w0 < 1e-3) | (w1 < 1e-3) | (gaussian_apart(m0, m1, v0, v1) == 0)


def gaussian_odds(w0, w1, m0, m1, v0, v1, low, width):
    """log-odds = c + h0 (x - m0)^2 - h1 (x - m1)^2 in units of x: c, m0, h0, m1, h1."""
    k0, h0 = gaussian_constants(w0, v0)
    k1, h1 = gaussian_constants(w1, v1)
    return k0 - k1, low + width * m0, h0 / (width * width), low + width * m1, h1 / (width * width)


# -- Beta --------------------------------------------------------------------------------------------------------
# 1e-6 is the floor f of Arazo et al. 2019 and Zhang et al. 2025.


def inner(z):
    """[0, 1] to [f, 1 - f]; the complement is mapped on its own, as 1 - x is too coarse at the upper end."""
    return z * 0.999998 + 1e-6


def log_gamma(x):
    """log of the gamma function, x > 0: Stirling's series at x + 8, relative error about 1e-15."""
    y = x + 8
    r = 1 / y
    q = r * r
    series = 1 / 12 - q * (1 / 360 - q * (1 / 1260 - q * (1 / 1680 - q * (1 / 1188 - q * (691 / 360360)))))
    product = x * (x + 1) * (x + 2) * (x + 3) * (x + 4) * (x + 5) * (x + 6) * (x + 7)
    return (y - 0.5) * log(y) - y + 0.9189385332046727 + r * series - log(product)


def digamma(x):
    """Derivative of log_gamma."""
    total = x * 0.0
    for i in range(8):
        total += 1 / (x + i)
    y = x + 8
    q = 1 / (y * y)
    series = 1 / 12 - q * (1 / 120 - q * (1 / 252 - q * (1 / 240 - q * (1 / 132 - q * (691 / 32760)))))
    return log(y) - 0.5 / y - q * series - total


def trigamma(x):
    """Derivative of digamma."""
    total = x * 0.0
    for i in range(8):
        total += 1 / ((x + i) * (x + i))
    r = 1 / (x + 8)
    q = r * r
    series = 1 / 6 - q * (1 / 30 - q * (1 / 42 - q * (1 / 30 - q * (5 / 66 - q * (691 / 2730)))))
    return r + 0.5 * q + r * q * series + total


def beta_constant(weight, a, b):
    """log density = k + (a - 1) log x + (b - 1) log(1 - x)."""
    return log(larger(weight, 1e-300)) + log_gamma(a + b) - log_gamma(a) - log_gamma(b)


def floored_share(l0, l1):
    """`share` as IDO has it: densities at least f, and f in the denominator."""
    d0, d1 = larger(exp(l0), 1e-6), larger(exp(l1), 1e-6)
    r = 1 / (d0 + d1 + 1e-6)
    return d0 * r, d1 * r, log(d0 + d1)


def beta_moments(s0, s1, s2):
    """alpha and beta with the weighted mean and variance, from sums of r, r (x - 1/2), r (x - 1/2)^2."""
    n = s0 + 1e-6
    mean = (s1 + 0.5 * s0) / n
    d = mean - 0.5
    variance = larger((s2 - 2 * d * s1 + d * d * s0) / n, 1e-6)
    a = mean * (mean * (1 - mean) / variance - 1)
    return larger(a, 1e-6), larger(a * (1 - mean) / mean, 1e-6)


def towards(new, old):
    """A Newton step, at most four times up or down, within [1e-3, 1e6]."""
    low, high = larger(0.25 * old, 1e-3), 4 * old
    new = where(new < low, low, new)  # a NaN goes up
    return where(new < larger(low, where(high > 1e6, 1e6, high)), new, larger(low, where(high > 1e6, 1e6, high)))


def beta_likelihood(mean_log, mean_log_rest, a, b):
    """alpha and beta of maximum likelihood by Newton's method, from the weighted means of log x and log(1 - x)."""
    for _ in range(8):
        both, t = digamma(a + b), trigamma(a + b)
        ga, gb = mean_log - digamma(a) + both, mean_log_rest - digamma(b) + both
        ha, hb = trigamma(a) - t, trigamma(b) - t
        scale = 1 / (ha * hb - t * t)
        a, b = towards(a + (hb * ga + t * gb) * scale, a), towards(b + (t * ga + ha * gb) * scale, b)
    return a, b


def beta_collapsed(w0, w1, a0, a1, b0, b1):
    """A weight under 1e-3, or a lower mean that is not lower by a thousandth."""
    return (w0 < 1e-3) | (w1 < 1e-3) | (a1 / (a1 + b1) - a0 / (a0 + b0) <= 1e-3)


def beta_odds(w0, w1, a0, a1, b0, b1, low, width):
    """log-odds = c + p log x + q log(1 - x), held where they turn: c, p, q, and the values between which they fall.

    A density that vanishes faster at an end would make the largest losses clean; Arazo et al. hold their table as well.
    """
    p, q = a0 - a1, b0 - b1
    turn = (p / where(p + q == 0, 1.0, p + q) - 1e-6) / 0.999998
    turn = where(turn < 0, 0.0, where(turn > 1, 1.0, turn))
    start, end = where((p > 0) & (q > 0), turn, 0.0), where((p < 0) & (q < 0), turn, 1.0)
    return beta_constant(w0, a0, b0) - beta_constant(w1, a1, b1), p, q, low + width * start, low + width * end


FORMULAS = (
    share, gaussian_constants, gaussian_step, gaussian_apart, gaussian_collapsed, gaussian_odds, inner, log_gamma,
    digamma, trigamma, beta_constant, floored_share, beta_moments, towards, beta_likelihood, beta_collapsed, beta_odds,
)  # fmt: skip


def compiled(namespace: Mapping[str, Any], compiler: Callable[..., Any]) -> dict[str, Any]:
    """All formulas by name, with `log`, `exp`, `where`, `larger` of a backend, each compiled by it."""
    scope = dict(namespace)
    for formula in FORMULAS:
        bound = FunctionType(formula.__code__, {**formula.__globals__, **scope}, formula.__name__)
        scope[formula.__name__] = compiler(bound)
    return scope
