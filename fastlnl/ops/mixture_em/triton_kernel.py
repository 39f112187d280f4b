"""mixture_em on the GPU: one program a group iterates over its points until they settle, without the host.

float64 throughout: the points are few (4,096 bins, from the cache), sums over them decide when to stop, and the result
is scikit-learn's. Sums are kept per lane over all blocks and reduced once, always in the same order.
"""

import torch
import triton
import triton.language as tl

from fastlnl.ops.mixture_em import FAMILIES, INITS, EMInput, EMOptions, MixtureFit
from fastlnl.ops.mixture_em import definitions as formulas
from fastlnl.ops.row_loss.triton_kernel import NAMESPACE

BLOCK, NUM_WARPS = 1024, 8
CERTAIN = tl.constexpr(1000.0)  # as in the contract
LLOYD_STEPS = tl.constexpr(formulas.LLOYD_STEPS)
GAUSSIAN, MOMENTS = tl.constexpr(FAMILIES.index("gaussian")), tl.constexpr(FAMILIES.index("beta_moments"))
LLOYD, QUANTILE = tl.constexpr(INITS.index("lloyd")), tl.constexpr(INITS.index("quantile"))

_formulas = formulas.compiled(NAMESPACE, triton.jit)
_share, _floored_share, inner = _formulas["share"], _formulas["floored_share"], _formulas["inner"]
_gaussian_constants, _gaussian_step = _formulas["gaussian_constants"], _formulas["gaussian_step"]
_gaussian_apart, _gaussian_collapsed, _gaussian_odds = (
    _formulas["gaussian_apart"], _formulas["gaussian_collapsed"], _formulas["gaussian_odds"]
)  # fmt: skip
_beta_constant, _beta_moments, _beta_likelihood = (
    _formulas["beta_constant"], _formulas["beta_moments"], _formulas["beta_likelihood"]
)  # fmt: skip
_beta_collapsed, _beta_odds = _formulas["beta_collapsed"], _formulas["beta_odds"]


@triton.jit
def _points(value, count, at, stop, low, high, CLIP: tl.constexpr):
    """Counts and places of a block of points; z counts up from the lower limit, rest down from the upper one."""
    width = tl.where(high > low, high - low, 1.0)
    n = tl.load(count + at, mask=at < stop, other=0).to(tl.float64)
    v = tl.load(value + at, mask=at < stop, other=0.0)
    z, rest = (v - low) / width, (high - v) / width
    if CLIP:
        z, rest = tl.minimum(tl.maximum(z, 0.0), 1.0), tl.minimum(tl.maximum(rest, 0.0), 1.0)
    return n, z, rest


@triton.jit
def _ends(value, count, start, stop, low, high, lane, zero, CLIP: tl.constexpr, BLOCK: tl.constexpr):
    """Sum of counts, sum of values, lowest and highest place, and how many lie elsewhere."""
    total, whole, first, last = zero, zero, zero + float("inf"), zero - float("inf")
    for block in range(start, stop, BLOCK):
        n, z, _rest = _points(value, count, block + lane, stop, low, high, CLIP)
        total, whole = total + n, whole + n * z
        first = tl.minimum(first, tl.where(n > 0, z, float("inf")))
        last = tl.maximum(last, tl.where(n > 0, z, -float("inf")))
    lowest, highest = tl.min(first, 0), tl.max(last, 0)
    between = zero
    for block in range(start, stop, BLOCK):
        n, z, _rest = _points(value, count, block + lane, stop, low, high, CLIP)
        between += tl.where((z == lowest) | (z == highest), 0.0, n)
    return tl.sum(total, 0), tl.sum(whole, 0), lowest, highest, tl.sum(between, 0)


@triton.jit
def _pick(value, count, start, stop, low, high, lane, zero, centre, target, last, SQUARED: tl.constexpr,
          CLIP: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The first point at which the running sum of n, or n (z - centre)^2, exceeds the target; the last if none."""
    running, found = target * 0.0, last
    for block in range(start, stop, BLOCK):
        n, z, _rest = _points(value, count, block + lane, stop, low, high, CLIP)
        weight = n * (z - centre) * (z - centre) if SQUARED else n
        sums = running + tl.cumsum(weight, 0)
        found = tl.minimum(found, tl.min(tl.where((n > 0) & (sums > target), z, last), 0))
        running += tl.sum(weight, 0)
    return found


@triton.jit
def _hard_split(value, count, draw, group, start, stop, low, high, lane, zero, total, whole, first, last,
                INIT: tl.constexpr, CLIP: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The z up to which a point starts in the lower component."""
    middle = (first + last) / 2
    if INIT == QUANTILE:
        cut = _pick(value, count, start, stop, low, high, lane, zero, first, total / 2, last, False, CLIP, BLOCK)
        return tl.where(cut < last, cut, middle)
    else:
        if INIT != LLOYD:
            target = tl.load(draw + 2 * group) * total
            one = _pick(value, count, start, stop, low, high, lane, zero, first, target, last, False, CLIP, BLOCK)
            far = zero
            for block in range(start, stop, BLOCK):
                n, z, _rest = _points(value, count, block + lane, stop, low, high, CLIP)
                far += n * (z - one) * (z - one)
            target = tl.load(draw + 2 * group + 1) * tl.sum(far, 0)
            two = _pick(value, count, start, stop, low, high, lane, zero, one, target, last, True, CLIP, BLOCK)
            middle = (one + two) / 2
        before, step = total * 0.0 - 1.0, 0
        while step < LLOYD_STEPS:
            below, s = zero, zero
            for block in range(start, stop, BLOCK):
                n, z, _rest = _points(value, count, block + lane, stop, low, high, CLIP)
                here = tl.where(z <= middle, n, 0.0)
                below, s = below + here, s + here * z
            m, sum_ = tl.sum(below, 0), tl.sum(s, 0)
            settled = (m == 0) | (m == total) | (m == before)
            middle = tl.where(settled, middle, (sum_ / m + (whole - sum_) / (total - m)) / 2)
            before, step = m, tl.where(settled, LLOYD_STEPS, step + 1)
        return middle


@triton.jit
def _gaussian_start(value, count, start, stop, low, high, lane, zero, total, cut, reg_covar, smallest,
                    CLIP: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The M step after a hard split."""
    s0, s1, s2, t0, t1, t2 = zero, zero, zero, zero, zero, zero
    for block in range(start, stop, BLOCK):
        n, z, _rest = _points(value, count, block + lane, stop, low, high, CLIP)
        a = tl.where(z <= cut, n, 0.0)
        b = n - a
        s0, s1, s2 = s0 + a, s1 + a * z, s2 + a * z * z
        t0, t1, t2 = t0 + b, t1 + b * z, t2 + b * z * z
    pivot = total * 0.0
    w0, m0, v0 = _gaussian_step(tl.sum(s0, 0), tl.sum(s1, 0), tl.sum(s2, 0), pivot, total, reg_covar, smallest)
    w1, m1, v1 = _gaussian_step(tl.sum(t0, 0), tl.sum(t1, 0), tl.sum(t2, 0), pivot, total, reg_covar, smallest)
    return w0, w1, m0, m1, v0, v1


@triton.jit
def _em(value, count, start, stop, low, high, lane, zero, total, w0, w1, a0, a1, b0, b1, reg_covar, smallest,
        FAMILY: tl.constexpr, CLIP: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Mean log-likelihood under the parameters, and the parameters after one step."""
    if FAMILY == GAUSSIAN:
        k0, h0 = _gaussian_constants(w0, b0)
        k1, h1 = _gaussian_constants(w1, b1)
    else:
        k0, k1 = _beta_constant(w0, a0, b0), _beta_constant(w1, a1, b1)
    bound, s0, s1, s2, t0, t1, t2 = zero, zero, zero, zero, zero, zero, zero
    for block in range(start, stop, BLOCK):
        n, z, rest = _points(value, count, block + lane, stop, low, high, CLIP)
        if FAMILY == GAUSSIAN:
            f0, f1 = z - a0, z - a1
            g0, g1 = f0 * f0, f1 * f1
            r0, r1, log_sum = _share(k0 + h0 * g0, k1 + h1 * g1)
        else:
            u, v = tl.log(inner(z)), tl.log(inner(rest))
            l0, l1 = k0 + (a0 - 1) * u + (b0 - 1) * v, k1 + (a1 - 1) * u + (b1 - 1) * v
            if FAMILY == MOMENTS:
                r0, r1, log_sum = _floored_share(l0, l1)
                f0 = inner(z) - 0.5
                g0 = f0 * f0
            else:
                r0, r1, log_sum = _share(l0, l1)
                f0, g0 = u, v
            f1, g1 = f0, g0
        r0, r1, bound = n * r0, n * r1, bound + n * log_sum
        s0, s1, s2 = s0 + r0, s1 + r0 * f0, s2 + r0 * g0
        t0, t1, t2 = t0 + r1, t1 + r1 * f1, t2 + r1 * g1
    n0, n1 = tl.sum(s0, 0), tl.sum(t0, 0)
    f0, f1, g0, g1 = tl.sum(s1, 0), tl.sum(t1, 0), tl.sum(s2, 0), tl.sum(t2, 0)
    if FAMILY == GAUSSIAN:
        w0, a0, b0 = _gaussian_step(n0, f0, g0, a0, total, reg_covar, smallest)
        w1, a1, b1 = _gaussian_step(n1, f1, g1, a1, total, reg_covar, smallest)
    else:
        if FAMILY == MOMENTS:
            a0, b0 = _beta_moments(n0, f0, g0)
            a1, b1 = _beta_moments(n1, f1, g1)
            b0, a1 = tl.where(b0 < 1.02, 1.1, b0), tl.where(a1 < 1.02, 1.1, a1)
        else:
            a0, b0 = _beta_likelihood(f0 / (n0 + 1e-300), g0 / (n0 + 1e-300), a0, b0)
            a1, b1 = _beta_likelihood(f1 / (n1 + 1e-300), g1 / (n1 + 1e-300), a1, b1)
        both = tl.maximum(n0 + n1, 1e-300)
        w0, w1 = n0 / both, n1 / both
    return tl.sum(bound, 0) / total, w0, w1, a0, a1, b0, b1


@triton.jit
def mixture_em_kernel(value, count, offset, limits, start_, draw, fitted, info, odds, cuts, max_iter,
                      FAMILY: tl.constexpr, INIT: tl.constexpr, REG_COVAR: tl.constexpr, TOL: tl.constexpr,
                      CLIP: tl.constexpr, START: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    group = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    zero = lane.to(tl.float64) * 0.0
    start, stop = tl.load(offset + group), tl.load(offset + group + 1)
    low, high = tl.load(limits + 2 * group), tl.load(limits + 2 * group + 1)
    INSIDE: tl.constexpr = CLIP or FAMILY != GAUSSIAN
    total, whole, first, last, between = _ends(value, count, start, stop, low, high, lane, zero, INSIDE, BLOCK)
    reg_covar = total * 0.0 + REG_COVAR
    some = total > 0
    smallest = tl.where(some, 1e-12 * (last - first) * (last - first), 0.0) + 1e-300
    status = tl.where(some, tl.where(total < 4, 2, 0) + tl.where(first == last, 4, 0), 1)
    bad = status != 0
    counted = tl.maximum(total, 1.0)
    w0, w1, a0 = total * 0.0 + 1.0, total * 0.0, total * 0.0
    a1, b0, b1 = a0, w0, w0
    if START:
        w0, w1 = tl.load(start_ + 6 * group), tl.load(start_ + 6 * group + 1)
        a0, a1 = tl.load(start_ + 6 * group + 2), tl.load(start_ + 6 * group + 3)
        b0, b1 = tl.load(start_ + 6 * group + 4), tl.load(start_ + 6 * group + 5)
    given, cut = START, tl.where(some, last, 0.0)
    if FAMILY == GAUSSIAN:
        sum_ = w0 + w1 + a0 + a1 + b0 + b1
        if bad | (sum_ != sum_) | (given == 0):
            if bad == 0:  # else all values are in both components, as there is nothing to split
                cut = _hard_split(value, count, draw, group, start, stop, low, high, lane, zero, total, whole,
                                  first, last, INIT, INSIDE, BLOCK)  # fmt: skip
            w0, w1, a0, a1, b0, b1 = _gaussian_start(
                value, count, start, stop, low, high, lane, zero, counted, cut, reg_covar, smallest, INSIDE, BLOCK
            )  # fmt: skip
            a1, b1 = tl.where(bad, a0, a1), tl.where(bad, b0, b1)
    bound, steps, converged = total * 0.0, 0, 0
    running = (bad == 0) & (max_iter > 0)
    while running:
        before = bound
        bound, w0, w1, a0, a1, b0, b1 = _em(
            value, count, start, stop, low, high, lane, zero, total, w0, w1, a0, a1, b0, b1, reg_covar, smallest,
            FAMILY, INSIDE, BLOCK,
        )  # fmt: skip
        converged = tl.where((steps > 0) & (tl.abs(bound - before) < TOL), 1, 0)
        steps += 1
        running = (converged == 0) & (steps < max_iter)
    w0, w1 = tl.where(bad, 1.0, w0), tl.where(bad, 0.0, w1)
    if FAMILY == GAUSSIAN:
        swap = (a0 > a1) & _gaussian_apart(a0, a1, b0, b1)
        w0, w1 = tl.where(swap, w1, w0), tl.where(swap, w0, w1)
        a0, a1 = tl.where(swap, a1, a0), tl.where(swap, a0, a1)
        b0, b1 = tl.where(swap, b1, b0), tl.where(swap, b0, b1)
        collapsed = _gaussian_collapsed(w0, w1, a0, a1, b0, b1)
    else:
        collapsed = _beta_collapsed(w0, w1, a0, a1, b0, b1)
    collapsed = collapsed & (bad == 0)
    status += tl.where(collapsed, 8, 0) + tl.where((bad == 0) & (between == 0), 16, 0)
    row = fitted + 7 * group
    tl.store(row, w0)
    tl.store(row + 1, w1)
    tl.store(row + 2, a0)
    tl.store(row + 3, a1)
    tl.store(row + 4, b0)
    tl.store(row + 5, b1)
    tl.store(row + 6, bound)
    tl.store(info + 3 * group, steps)
    tl.store(info + 3 * group + 1, converged)
    tl.store(info + 3 * group + 2, status)
    clean = bad | collapsed
    width = tl.where(high > low, high - low, 1.0)
    tl.store(cuts + group, low + width * cut)
    row = odds + 8 * group
    if FAMILY == GAUSSIAN:
        c, p0, p1, p2, p3 = _gaussian_odds(w0, w1, a0, a1, b0, b1, low, width)
        end0 = low if CLIP else low * 0.0 - float("inf")
        end1 = high if CLIP else high * 0.0 + float("inf")
        scale = low * 0.0
    else:
        c, p0, p1, p2, p3 = _beta_odds(w0, w1, a0, a1, b0, b1, low, width)
        end0, end1, scale = low, high, 1.0 / width
    tl.store(row, tl.where(clean, CERTAIN, c))
    tl.store(row + 1, tl.where(clean, 0.0, p0))
    tl.store(row + 2, tl.where(clean, 0.0, p1))
    tl.store(row + 3, tl.where(clean, 0.0, p2))
    tl.store(row + 4, tl.where(clean, 0.0, p3))
    tl.store(row + 5, tl.where(clean, 0.0, end0))
    tl.store(row + 6, tl.where(clean, 0.0, end1))
    tl.store(row + 7, tl.where(clean, 0.0, scale))


def mixture_em(points: EMInput, options: EMOptions) -> MixtureFit:
    groups, place = len(points.offset) - 1, points.value.device
    fitted = torch.empty(groups, 7, dtype=torch.float64, device=place)
    info = torch.empty(groups, 3, dtype=torch.int64, device=place)
    odds = torch.empty(groups, 8, dtype=torch.float64, device=place)
    cut = torch.empty(groups, dtype=torch.float64, device=place)
    if groups > 0:
        mixture_em_kernel[(groups,)](
            points.value, points.counts, points.offset, points.limits, points.start, points.draw, fitted, info, odds,
            cut, options.max_iter, FAMILY=FAMILIES.index(options.family), INIT=INITS.index(options.init),
            REG_COVAR=options.reg_covar, TOL=options.tol, CLIP=options.clip, START=points.start is not None,
            BLOCK=BLOCK, num_warps=NUM_WARPS,
        )  # fmt: skip
    return MixtureFit(fitted, info, odds, cut)
