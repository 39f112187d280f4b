"""mixture_em in plain torch: all groups at once, every sum over points an index_add."""

import torch
from torch import Tensor

from fastlnl.ops.mixture_em import CERTAIN, EMInput, EMOptions, MixtureFit, MixtureStatus
from fastlnl.ops.mixture_em.definitions import (
    LLOYD_STEPS,
    beta_collapsed,
    beta_constant,
    beta_likelihood,
    beta_moments,
    beta_odds,
    floored_share,
    gaussian_apart,
    gaussian_collapsed,
    gaussian_constants,
    gaussian_odds,
    gaussian_step,
    inner,
    share,
)

Pair = tuple[Tensor, Tensor]


class Groups:
    """Points mapped by the limits, and sums over those of each group."""

    def __init__(self, points: EMInput, clip: bool) -> None:
        self.size = len(points.offset) - 1
        at = torch.arange(len(points.value), device=points.value.device)
        group = torch.searchsorted(points.offset, at, right=True) - 1
        self.of = group.clamp(0, max(self.size - 1, 0))
        self.low, self.high = points.limits.unbind(1)
        self.width = torch.where(self.high > self.low, self.high - self.low, 1)
        self.n = torch.where(group == self.of, points.counts, 0).double()
        self.z = torch.where(self.n > 0, (points.value - self.low[self.of]) / self.width[self.of], 0)
        self.rest = torch.where(self.n > 0, (self.high[self.of] - points.value) / self.width[self.of], 0)
        if clip:
            self.z, self.rest = self.z.clamp(0, 1), self.rest.clamp(0, 1)
        self.total = self.sum(self.n)
        self.first, self.last = self.end("amin", torch.inf), self.end("amax", -torch.inf)

    def sum(self, x: Tensor) -> Tensor:
        return torch.zeros(self.size, dtype=torch.float64, device=x.device).index_add_(0, self.of, x)

    def end(self, reduce: str, beyond: float) -> Tensor:
        end = torch.full((self.size,), beyond, dtype=torch.float64, device=self.z.device)
        end.scatter_reduce_(0, self.of, torch.where(self.n > 0, self.z, beyond), reduce)
        return torch.where(end.isfinite(), end, 0)


def mixture_em(points: EMInput, options: EMOptions) -> MixtureFit:
    gaussian = options.family == "gaussian"
    groups = Groups(points, options.clip or not gaussian)
    step = gaussian_em if gaussian else beta_em
    few = torch.where(groups.total == 0, MixtureStatus.EMPTY, 0)
    few += torch.where((groups.total > 0) & (groups.total < 4), MixtureStatus.TOO_FEW, 0)
    few += torch.where((groups.total > 0) & (groups.first == groups.last), MixtureStatus.ALL_EQUAL, 0)
    parameters, cut = started(groups, points, options)
    plain = plain_parameters(groups, options) if gaussian else parameters
    plain = torch.stack((torch.ones_like(groups.total), torch.zeros_like(groups.total), *plain[2:]))
    before = torch.full_like(groups.total, -torch.inf)
    running = few == 0
    steps, converged = torch.zeros_like(few), torch.zeros_like(running)
    for _ in range(options.max_iter):
        bound, moved = step(groups, parameters, options)
        parameters = torch.where(running, moved, parameters)
        steps += running
        converged |= running & ((bound - before).abs() < options.tol)
        before = torch.where(running, bound, before)
        running &= ~converged
    parameters = torch.where(few == 0, parameters, plain)
    if gaussian:
        swapped = parameters[[1, 0, 3, 2, 5, 4]]
        apart = gaussian_apart(*parameters[2:])
        parameters = torch.where(apart & (parameters[2] > parameters[3]), swapped, parameters)
    collapsed = (gaussian_collapsed if gaussian else beta_collapsed)(*parameters) & (few == 0)
    both = groups.sum(groups.n * ((groups.z == groups.first[groups.of]) | (groups.z == groups.last[groups.of])))
    two = (few == 0) & (both == groups.total)
    status = few + torch.where(collapsed, MixtureStatus.COLLAPSED, 0) + torch.where(two, MixtureStatus.TWO_VALUES, 0)
    before = torch.where(steps > 0, before, 0)
    fitted = torch.cat((parameters, before[None])).t().contiguous()
    odds = log_odds(groups, parameters, options, (few > 0) | collapsed)
    cut = groups.low + groups.width * torch.where(few == 0, cut, groups.last)
    return MixtureFit(fitted, torch.stack((steps, converged.long(), status), dim=1), odds, cut)


def started(groups: Groups, points: EMInput, options: EMOptions) -> Pair:
    """Parameters (6, G) at the start: the given ones, where there are none those of a hard split; and that split."""
    given = None if points.start is None else points.start.t()
    if given is not None and options.family != "gaussian":
        return given.contiguous(), groups.last
    cut = split(groups, points, options)
    low = (groups.z <= cut[groups.of]).double()
    zero = torch.zeros_like(groups.total)
    found = gaussian_maximisation(groups, (low, 1 - low), (zero, zero), options)
    if given is None:
        return found, cut
    missing = given.isnan().any(0)
    return torch.where(missing, found, given), torch.where(missing, cut, groups.last)


def split(groups: Groups, points: EMInput, options: EMOptions) -> Tensor:
    """The z (G,) up to which a point starts in the lower component."""
    middle = (groups.first + groups.last) / 2
    if options.init == "quantile":
        cut = pick(groups, groups.n, groups.total / 2)
        return torch.where(cut < groups.last, cut, middle)
    if options.init == "kmeans++" and points.draw is not None:
        one = pick(groups, groups.n, points.draw[:, 0] * groups.total)
        far = groups.n * (groups.z - one[groups.of]) ** 2
        two = pick(groups, far, points.draw[:, 1] * groups.sum(far))
        middle = (one + two) / 2
    before = torch.full_like(middle, -1)
    for _ in range(LLOYD_STEPS):
        low = groups.n * (groups.z <= middle[groups.of])
        n, s, all_ = groups.sum(low), groups.sum(low * groups.z), groups.sum(groups.n * groups.z)
        sides = (n > 0) & (n < groups.total) & (n != before)
        middle = torch.where(sides, (s / n.clamp(min=1) + (all_ - s) / (groups.total - n).clamp(min=1)) / 2, middle)
        before = n
    return middle


def pick(groups: Groups, weight: Tensor, target: Tensor) -> Tensor:
    """The first point (G,) at which the running sum of the weights reaches more than `target`; the last if none."""
    running = torch.cumsum(weight, 0)
    before_group = torch.zeros_like(groups.total).scatter_reduce_(
        0, groups.of, running - weight, "amin", include_self=False
    )
    beyond = running - before_group[groups.of] > target[groups.of]
    found = torch.full_like(groups.total, torch.inf)
    found.scatter_reduce_(0, groups.of, torch.where(beyond & (groups.n > 0), groups.z, torch.inf), "amin")
    return torch.minimum(found, groups.last)


def gaussian_maximisation(groups: Groups, r: Pair, pivot: Pair, options: EMOptions) -> Tensor:
    smallest = 1e-12 * (groups.last - groups.first) ** 2 + 1e-300
    components = []
    for r_k, pivot_k in zip(r, pivot, strict=True):
        w, d = groups.n * r_k, groups.z - pivot_k[groups.of]
        sums = groups.sum(w), groups.sum(w * d), groups.sum(w * d * d)
        total = groups.total.clamp(min=1)
        components.append(gaussian_step(*sums, pivot_k, total, options.reg_covar, smallest))
    return torch.stack([x for pair in zip(*components, strict=True) for x in pair])


def plain_parameters(groups: Groups, options: EMOptions) -> Tensor:
    """Both components on all values."""
    half, zero = torch.full_like(groups.z, 0.5), torch.zeros_like(groups.total)
    return gaussian_maximisation(groups, (half, half), (zero, zero), options)


def gaussian_em(groups: Groups, parameters: Tensor, options: EMOptions) -> Pair:
    """Mean log-likelihood under the parameters (6, G), and the parameters after one step."""
    w0, w1, m0, m1, v0, v1 = parameters[:, groups.of]
    k0, h0 = gaussian_constants(w0, v0)
    k1, h1 = gaussian_constants(w1, v1)
    r0, r1, log_sum = share(k0 + h0 * (groups.z - m0) ** 2, k1 + h1 * (groups.z - m1) ** 2)
    bound = groups.sum(groups.n * log_sum) / groups.total.clamp(min=1)
    return bound, gaussian_maximisation(groups, (r0, r1), (parameters[2], parameters[3]), options)


def beta_em(groups: Groups, parameters: Tensor, options: EMOptions) -> Pair:
    x, rest = inner(groups.z), inner(groups.rest)
    k = beta_constant(parameters[:2], parameters[2:4], parameters[4:])[:, groups.of]
    a, b = parameters[2:4, groups.of], parameters[4:, groups.of]
    moments = options.family == "beta_moments"
    r0, r1, log_sum = (floored_share if moments else share)(*(k + (a - 1) * x.log() + (b - 1) * rest.log()))
    sums, components = [groups.sum(groups.n * r) for r in (r0, r1)], []
    for i, r in enumerate((r0, r1)):
        w = groups.n * r
        if moments:
            a_i, b_i = beta_moments(sums[i], groups.sum(w * (x - 0.5)), groups.sum(w * (x - 0.5) ** 2))
            a_i, b_i = (a_i, torch.where(b_i < 1.02, 1.1, b_i)) if i == 0 else (torch.where(a_i < 1.02, 1.1, a_i), b_i)
        else:
            n = sums[i] + 1e-300
            means = groups.sum(w * x.log()) / n, groups.sum(w * rest.log()) / n
            a_i, b_i = beta_likelihood(*means, parameters[2 + i], parameters[4 + i])
        components.append((sums[i] / (sums[0] + sums[1]).clamp(min=1e-300), a_i, b_i))
    bound = groups.sum(groups.n * log_sum) / groups.total.clamp(min=1)
    return bound, torch.stack([y for pair in zip(*components, strict=True) for y in pair])


def log_odds(groups: Groups, parameters: Tensor, options: EMOptions, all_clean: Tensor) -> Tensor:
    zero = torch.zeros_like(groups.low)
    if options.family == "gaussian":
        ends = (groups.low, groups.high) if options.clip else (zero - torch.inf, zero + torch.inf)
        found = torch.stack((*gaussian_odds(*parameters, groups.low, groups.width), *ends, zero), dim=1)  # type: ignore[call-arg]
    else:
        found = beta_odds(*parameters, groups.low, groups.width)  # type: ignore[call-arg]
        found = torch.stack((*found, groups.low, groups.high, 1 / groups.width), dim=1)
    plain = torch.zeros_like(found)
    plain[:, 0] = CERTAIN
    return torch.where(all_clean[:, None], plain, found)
