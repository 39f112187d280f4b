// The formulas of fastlnl/ops/mixture_em/definitions.py in float64.
//
// The special functions are long, so they stand in a kernel once: the lanes of a warp take the arguments of both
// components, three each, and hand the results around. Called by whole warps.
#pragma once

#include "common.cuh"

namespace fastlnl {

constexpr double CERTAIN = 1000;  // log-odds by rule, not by a fit

FASTLNL_DEVICE double held(double x, double low, double high) { return x < low ? low : x < high ? x : high; }
FASTLNL_DEVICE double larger(double x, double y) { return x > y ? x : y; }

struct Shares {
  double r0, r1, log_sum;
};

// Of both components, from weighted log-densities.
FASTLNL_DEVICE Shares share(double l0, double l1) {
  const double gap = l0 - l1, e = exp(-fabs(gap)), r = 1 / (1 + e);
  return {gap > 0 ? r : e * r, gap > 0 ? e * r : r, larger(l0, l1) + log(1 + e)};
}

// As IDO has it: densities at least 1e-6, and 1e-6 in the denominator.
FASTLNL_DEVICE Shares floored_share(double l0, double l1) {
  const double d0 = larger(exp(l0), 1e-6), d1 = larger(exp(l1), 1e-6), r = 1 / (d0 + d1 + 1e-6);
  return {d0 * r, d1 * r, log(d0 + d1)};
}

// Weight, and mean and variance or alpha and beta.
struct Component {
  double weight, a, b;
};

// ---- Gaussian

struct Parabola {
  double constant, curvature;
};

FASTLNL_DEVICE Parabola log_density(const Component& c) {
  return {log(larger(c.weight, 1e-300)) - 0.5 * log(c.b) - 0.9189385332046727, -0.5 / c.b};
}

// From sums of r, r (z - pivot), r (z - pivot)^2.
FASTLNL_DEVICE Component gaussian_step(double s0, double s1, double s2, double pivot, double total, double reg_covar,
                                       double smallest) {
  const double n = s0 + 2.220446049250313e-15, shift = s1 / n;
  return {n / total, pivot + shift, larger(larger(s2 / n - shift * shift, 0) + reg_covar, smallest)};
}

// Means further from each other than a thousandth of the wider deviation: which is lower is then no rounding.
FASTLNL_DEVICE bool gaussian_apart(const Component& c, const Component& d) {
  return (d.a - c.a) * (d.a - c.a) > 1e-6 * larger(c.b, d.b);
}

FASTLNL_DEVICE bool gaussian_collapsed(const Component& c, const Component& d) {
  return c.weight < 1e-3 || d.weight < 1e-3 || !gaussian_apart(c, d);
}

// ---- Beta

FASTLNL_DEVICE double inner(double z) { return z * 0.999998 + 1e-6; }

FASTLNL_DEVICE double log_gamma(double x) {
  const double y = x + 8, r = 1 / y, q = r * r;
  const double series =
      1.0 / 12 - q * (1.0 / 360 - q * (1.0 / 1260 - q * (1.0 / 1680 - q * (1.0 / 1188 - q * (691.0 / 360360)))));
  const double product = x * (x + 1) * (x + 2) * (x + 3) * (x + 4) * (x + 5) * (x + 6) * (x + 7);
  return (y - 0.5) * log(y) - y + 0.9189385332046727 + r * series - log(product);
}

FASTLNL_DEVICE double digamma(double x) {
  double total = 0;
#pragma unroll 1
  for (int i = 0; i < 8; ++i) total += 1 / (x + i);
  const double y = x + 8, q = 1 / (y * y);
  const double series =
      1.0 / 12 - q * (1.0 / 120 - q * (1.0 / 252 - q * (1.0 / 240 - q * (1.0 / 132 - q * (691.0 / 32760)))));
  return log(y) - 0.5 / y - q * series - total;
}

FASTLNL_DEVICE double trigamma(double x) {
  double total = 0;
#pragma unroll 1
  for (int i = 0; i < 8; ++i) total += 1 / ((x + i) * (x + i));
  const double r = 1 / (x + 8), q = r * r;
  const double series =
      1.0 / 6 - q * (1.0 / 30 - q * (1.0 / 42 - q * (1.0 / 30 - q * (5.0 / 66 - q * (691.0 / 2730)))));
  return r + 0.5 * q + r * q * series + total;
}

// Which component and which argument (alpha + beta, alpha, beta) a lane takes.
struct Part {
  int component, argument;

  FASTLNL_DEVICE Part() : component(int(threadIdx.x) % 32 / 3 % 2), argument(int(threadIdx.x) % 32 % 3) {}

  FASTLNL_DEVICE double of(double a, double b) const { return argument == 0 ? a + b : argument == 1 ? a : b; }

  // What the lane with this argument of this lane's component has.
  FASTLNL_DEVICE double from(double x, int other) const { return __shfl_sync(WARP, x, 3 * component + other); }
};

// log density = constant + (alpha - 1) log x + (beta - 1) log(1 - x): the constants of both.
FASTLNL_DEVICE void beta_constants(const Component& c, const Component& d, double& c_constant, double& d_constant) {
  const Part part;
  const double gamma = log_gamma(part.component == 0 ? part.of(c.a, c.b) : part.of(d.a, d.b));
  const double constant = part.from(gamma, 0) - part.from(gamma, 1) - part.from(gamma, 2);
  c_constant = log(larger(c.weight, 1e-300)) + __shfl_sync(WARP, constant, 0);
  d_constant = log(larger(d.weight, 1e-300)) + __shfl_sync(WARP, constant, 3);
}

// alpha and beta with the weighted mean and variance, from sums of r, r (x - 1/2), r (x - 1/2)^2.
FASTLNL_DEVICE void beta_moments(double s0, double s1, double s2, Component& c) {
  const double n = s0 + 1e-6, mean = (s1 + 0.5 * s0) / n, d = mean - 0.5;
  const double variance = larger((s2 - 2 * d * s1 + d * d * s0) / n, 1e-6);
  const double a = mean * (mean * (1 - mean) / variance - 1);
  c.a = larger(a, 1e-6);
  c.b = larger(c.a * (1 - mean) / mean, 1e-6);
}

// A Newton step, at most four times up or down, within [1e-3, 1e6]; a NaN goes up.
FASTLNL_DEVICE double towards(double next, double old) {
  const double low = larger(0.25 * old, 1e-3), high = larger(low, 4 * old > 1e6 ? 1e6 : 4 * old);
  next = next < low ? low : next;
  return next < high ? next : high;
}

// alpha and beta of maximum likelihood of both by Newton's method, from the weighted means of log x and log(1 - x).
FASTLNL_DEVICE void beta_likelihood(const double (&mean_log)[2], const double (&mean_log_rest)[2], Component& c,
                                    Component& d) {
  const Part part;
  double a = part.component == 0 ? c.a : d.a, b = part.component == 0 ? c.b : d.b;
  const double log_x = part.component == 0 ? mean_log[0] : mean_log[1];
  const double log_rest = part.component == 0 ? mean_log_rest[0] : mean_log_rest[1];
#pragma unroll 1
  for (int step = 0; step < 8; ++step) {
    const double argument = part.of(a, b), psi = digamma(argument), slope = trigamma(argument);
    const double both = part.from(psi, 0), t = part.from(slope, 0);
    const double ga = log_x - part.from(psi, 1) + both, gb = log_rest - part.from(psi, 2) + both;
    const double ha = part.from(slope, 1) - t, hb = part.from(slope, 2) - t;
    const double scale = 1 / (ha * hb - t * t);
    const double next = towards(a + (hb * ga + t * gb) * scale, a);
    b = towards(b + (t * ga + ha * gb) * scale, b);
    a = next;
  }
  c.a = __shfl_sync(WARP, a, 0), c.b = __shfl_sync(WARP, b, 0);
  d.a = __shfl_sync(WARP, a, 3), d.b = __shfl_sync(WARP, b, 3);
}

FASTLNL_DEVICE bool beta_collapsed(const Component& c, const Component& d) {
  return c.weight < 1e-3 || d.weight < 1e-3 || d.a / (d.a + d.b) - c.a / (c.a + c.b) <= 1e-3;
}

}  // namespace fastlnl
