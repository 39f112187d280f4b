// Two components on a line, from a start to a fit in one launch: fastlnl/ops/mixture_em.
//
// float64 throughout: the points are few, and sums over them decide when to stop. A group has a block, or where it is
// large (values, not bins) a cooperative grid with a stretch of the points a block. The points that count are moved to
// shared memory once, mapped to [0, 1] and for Beta with their logarithms; where they do not fit there they are mapped
// again each time. A thread's points are always the same, sums are added in the order of threads and blocks, and every
// thread comes to the same parameters, so a group has the same bits alone and among others in blocks, and in every
// launch of the same grid.
#include "points.cuh"

namespace fastlnl {

constexpr int LLOYD_STEPS = 100;
enum Status { EMPTY = 1, TOO_FEW = 2, ALL_EQUAL = 4, COLLAPSED = 8, TWO_VALUES = 16 };

// The first point at which the running sum of n, or n (z - centre)^2, exceeds the target; the last if none. Each
// thread looks through a stretch of its own.
template <bool SQUARED, class P>
FASTLNL_DEVICE double pick(P& points, double centre, double target, double last) {
  const int64_t each = (points.size + EM_THREADS - 1) / EM_THREADS;
  const int64_t begin = std::min(each * threadIdx.x, points.size), end = std::min(begin + each, points.size);
  const auto weight = [&](const Point& p) { return SQUARED ? p.n * (p.z - centre) * (p.z - centre) : p.n; };
  double sum = 0, found = last;
  for (int64_t i = begin; i < end; ++i) sum += weight(points.at(i));
  double running = points.crew.sum_before(sum, sum);
  for (int64_t i = begin; i < end; ++i) {
    const Point p = points.at(i);
    running += weight(p);
    if (p.n > 0 && running > target) {
      found = p.z;
      break;
    }
  }
  return points.crew.reduce(found, Smaller{});
}

// The z up to which a point starts in the lower component.
template <class P>
FASTLNL_DEVICE double hard_split(P& points, const EMArgs& args, const Ends& ends) {
  double middle = (ends.first + ends.last) / 2;
  if (args.init == QUANTILE) {
    const double cut = pick<false>(points, 0, ends.total / 2, ends.last);
    return cut < ends.last ? cut : middle;
  }
  if (args.init == KMEANS) {
    const double* draw = args.draw + 2 * points.crew.group;
    const double one = pick<false>(points, 0, load(draw) * ends.total, ends.last);
    double far = 0;
    points.each([&](const Point& p) { far += p.n * (p.z - one) * (p.z - one); });
    far = points.crew.reduce(far, Plus{});
    middle = (one + pick<true>(points, one, load(draw + 1) * far, ends.last)) / 2;
  }
  double before = -1;
  for (int step = 0; step < LLOYD_STEPS; ++step) {
    double below[2] = {0, 0};
    points.each([&](const Point& p) {
      if (p.z > middle) return;
      below[0] += p.n;
      below[1] += p.n * p.z;
    });
    points.crew.reduce(below, Plus{});
    const double m = below[0], sum = below[1];
    if (m == 0 || m == ends.total || m == before) break;
    middle = (sum / m + (ends.whole - sum) / (ends.total - m)) / 2;
    before = m;
  }
  return middle;
}

// Both components, the mean log-likelihood, and one step of EM.
template <int FAMILY>
struct Mixture {
  Component lower{1, 0, 1}, upper{0, 0, 1};
  double reg_covar, smallest, total;

  FASTLNL_DEVICE void gaussian_steps(const double (&s)[7], double lower_pivot, double upper_pivot) {
    lower = gaussian_step(s[1], s[2], s[3], lower_pivot, total, reg_covar, smallest);
    upper = gaussian_step(s[4], s[5], s[6], upper_pivot, total, reg_covar, smallest);
  }

  template <class P>
  FASTLNL_DEVICE void start_from(P& points, double cut) {  // the M step after a hard split
    double s[7] = {};
    points.each([&](const Point& p) {
      const bool below = p.z <= cut;
      const double w[3] = {p.n, p.n * p.z, p.n * p.z * p.z};
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        s[1 + i] += below ? w[i] : 0;
        s[4 + i] += below ? 0 : w[i];
      }
    });
    points.crew.reduce(s, Plus{});
    gaussian_steps(s, 0, 0);
  }

  template <class P>
  FASTLNL_DEVICE double step(P& points) {
    double k0, k1, h0 = 0, h1 = 0;
    if constexpr (FAMILY == GAUSSIAN) {
      const Parabola low = log_density(lower), high = log_density(upper);
      k0 = low.constant, h0 = low.curvature, k1 = high.constant, h1 = high.curvature;
    } else {
      beta_constants(lower, upper, k0, k1);
    }
    double s[7] = {};  // bound; r, r f, r g of both
    points.each([&](const Point& p) {
      double f0, g0, f1, g1;
      Shares r;
      if constexpr (FAMILY == GAUSSIAN) {
        f0 = p.z - lower.a, f1 = p.z - upper.a;
        g0 = f0 * f0, g1 = f1 * f1;
        r = share(k0 + h0 * g0, k1 + h1 * g1);
      } else {
        const double l0 = k0 + (lower.a - 1) * p.log_z + (lower.b - 1) * p.log_rest;
        const double l1 = k1 + (upper.a - 1) * p.log_z + (upper.b - 1) * p.log_rest;
        r = FAMILY == BETA_MOMENTS ? floored_share(l0, l1) : share(l0, l1);
        f0 = FAMILY == BETA_MOMENTS ? inner(p.z) - 0.5 : p.log_z;
        g0 = FAMILY == BETA_MOMENTS ? f0 * f0 : p.log_rest;
        f1 = f0, g1 = g0;
      }
      const double r0 = p.n * r.r0, r1 = p.n * r.r1;
      s[0] += p.n * r.log_sum;
      s[1] += r0, s[2] += r0 * f0, s[3] += r0 * g0;
      s[4] += r1, s[5] += r1 * f1, s[6] += r1 * g1;
    });
    points.crew.reduce(s, Plus{});
    if constexpr (FAMILY == GAUSSIAN) {
      gaussian_steps(s, lower.a, upper.a);
    } else {
      if constexpr (FAMILY == BETA_MOMENTS) {
        beta_moments(s[1], s[2], s[3], lower);
        beta_moments(s[4], s[5], s[6], upper);
        if (lower.b < 1.02) lower.b = 1.1;
        if (upper.a < 1.02) upper.a = 1.1;
      } else {
        const double n0 = s[1] + 1e-300, n1 = s[4] + 1e-300;
        beta_likelihood({s[2] / n0, s[5] / n1}, {s[3] / n0, s[6] / n1}, lower, upper);
      }
      const double both = larger(s[1] + s[4], 1e-300);
      lower.weight = s[1] / both, upper.weight = s[4] / both;
    }
    return s[0] / total;
  }
};

// A row of odds, see fastlnl/ops/mixture_posterior, and the values between which it is not held.
template <int FAMILY>
FASTLNL_DEVICE void odds_of(const Component& c, const Component& d, double low, double high, double width, bool clip,
                            double (&q)[8]) {
  if constexpr (FAMILY == GAUSSIAN) {
    const Parabola lower = log_density(c), upper = log_density(d);
    q[0] = lower.constant - upper.constant;
    q[1] = low + width * c.a, q[2] = lower.curvature / (width * width);
    q[3] = low + width * d.a, q[4] = upper.curvature / (width * width);
    q[5] = clip ? low : -double(INFINITE), q[6] = clip ? high : double(INFINITE), q[7] = 0;
  } else {
    double k0, k1;
    beta_constants(c, d, k0, k1);
    const double p = c.a - d.a, r = c.b - d.b;
    const double turn = held((p / (p + r == 0 ? 1 : p + r) - 1e-6) / 0.999998, 0, 1);
    q[0] = k0 - k1, q[1] = p, q[2] = r;
    q[3] = low + width * (p > 0 && r > 0 ? turn : 0), q[4] = low + width * (p < 0 && r < 0 ? turn : 1);
    q[5] = low, q[6] = high, q[7] = 1 / width;
  }
}

template <int FAMILY, class Crew>
FASTLNL_DEVICE void fit_group(const EMArgs& args, Crew crew, int capacity, double* memory) {
  const int64_t group = crew.group;
  Points<FAMILY, Crew> points(args, crew, capacity, memory);
  const Ends ends = points.ends();
  const bool some = ends.total > 0;
  int status = !some ? EMPTY : (ends.total < 4 ? TOO_FEW : 0) | (ends.first == ends.last ? ALL_EQUAL : 0);
  const bool bad = status != 0;
  Mixture<FAMILY> fit;
  fit.reg_covar = args.reg_covar, fit.total = larger(ends.total, 1);
  fit.smallest = (some ? 1e-12 * (ends.last - ends.first) * (ends.last - ends.first) : 0) + 1e-300;
  bool given = args.start != nullptr;
  if (given) {
    double s[6];
    for (int i = 0; i < 6; ++i) s[i] = load(args.start + 6 * group + i);
    fit.lower = {s[0], s[2], s[4]}, fit.upper = {s[1], s[3], s[5]};
    const double sum = s[0] + s[1] + s[2] + s[3] + s[4] + s[5];
    given = sum == sum;
  }
  double cut = some ? ends.last : 0;  // all values in both components where there is nothing to split
  if (FAMILY == GAUSSIAN && (bad || !given)) {
    if (!bad) cut = hard_split(points, args, ends);
    fit.start_from(points, cut);
    if (bad) fit.upper = fit.lower;
  }
  double bound = 0;
  int64_t steps = 0;
  bool converged = false;
  while (!bad && !converged && steps < args.max_iter) {
    const double before = bound;
    bound = fit.step(points);
    converged = steps > 0 && fabs(bound - before) < args.tol;
    ++steps;
  }
  if (bad) fit.lower.weight = 1, fit.upper.weight = 0;
  const bool swap = FAMILY == GAUSSIAN && fit.lower.a > fit.upper.a && gaussian_apart(fit.lower, fit.upper);
  const Component c = swap ? fit.upper : fit.lower, d = swap ? fit.lower : fit.upper;
  const bool collapsed = !bad && (FAMILY == GAUSSIAN ? gaussian_collapsed(c, d) : beta_collapsed(c, d));
  status |= (collapsed ? COLLAPSED : 0) | (!bad && ends.between == 0 ? TWO_VALUES : 0);
  double q[8];
  odds_of<FAMILY>(c, d, points.low, points.high, points.width, args.clip, q);
  if (threadIdx.x > 0 || crew.number > 0) return;
  const double fitted[7] = {c.weight, d.weight, c.a, d.a, c.b, d.b, bound};
  const int64_t info[3] = {steps, int64_t(converged), status};
#pragma unroll
  for (int i = 0; i < 7; ++i) store(args.fitted + 7 * group + i, fitted[i]);
#pragma unroll
  for (int i = 0; i < 3; ++i) store(args.info + 3 * group + i, info[i]);
#pragma unroll
  for (int i = 0; i < 8; ++i) store(args.odds + 8 * group + i, bad || collapsed ? (i == 0 ? CERTAIN : 0.0) : q[i]);
  store(args.cut + group, points.low + points.width * cut);
}

template <int FAMILY>
__global__ void __launch_bounds__(EM_THREADS) mixture_em_kernel(const EMArgs args, int capacity) {
  FASTLNL_DYNAMIC_SHARED(dynamic);
  fit_group<FAMILY>(args, OneBlock{blockIdx.x}, capacity, reinterpret_cast<double*>(dynamic));
}

template <int FAMILY>
__global__ void __launch_bounds__(EM_THREADS) mixture_grid_kernel(const EMArgs args, int capacity, int64_t group) {
  FASTLNL_DYNAMIC_SHARED(dynamic);
  fit_group<FAMILY>(args, WholeGrid(group, args), capacity, reinterpret_cast<double*>(dynamic));
}

// Points of shared memory that a block gets.
template <int FAMILY, class Kernel>
int64_t capacity_of(Kernel kernel, int64_t points) {
  constexpr int64_t POINT_BYTES = 8 * Points<FAMILY, OneBlock>::KEPT;
  constexpr int64_t MOST_BYTES = 160 * 1024;  // registers leave room for one block a multiprocessor; the rest is cache
  int64_t capacity = std::min(points, MOST_BYTES / POINT_BYTES);
  while (!may_share(kernel, capacity * POINT_BYTES)) capacity /= 2;
  return capacity;
}

// A block has 1,024 points at least, a multiprocessor one block at most: so all of them run at once.
inline int64_t grid_of(const EMArgs& args) {
  const int64_t most = std::min<int64_t>(args.most_blocks, device_has(cudaDevAttrMultiProcessorCount));
  return std::clamp<int64_t>(args.points / args.groups / (2 * EM_THREADS), 1, std::max<int64_t>(most, 1));
}

template <int FAMILY>
int launch_em(const EMArgs& args, void* stream) {
  constexpr int64_t POINT_BYTES = 8 * Points<FAMILY, OneBlock>::KEPT;
  if (args.sums == nullptr) {
    const auto kernel = mixture_em_kernel<FAMILY>;
    const int64_t capacity = capacity_of<FAMILY>(kernel, args.points);
    FASTLNL_LAUNCH(kernel, args.groups, EM_THREADS, capacity * POINT_BYTES, stream, args, int(capacity));
    return int(cudaGetLastError());
  }
  const auto kernel = mixture_grid_kernel<FAMILY>;
  const int64_t blocks = grid_of(args), capacity = capacity_of<FAMILY>(kernel, args.points / blocks + 1);
  int code = 0;
  for (int64_t group = 0; group < args.groups && code == 0; ++group)
    code = FASTLNL_LAUNCH_TOGETHER(kernel, blocks, EM_THREADS, capacity * POINT_BYTES, stream, args, int(capacity),
                                   group);
  return code;
}

}  // namespace fastlnl

int fastlnl_mixture_em(const fastlnl::EMArgs* args, void* stream) {
  using namespace fastlnl;
  if (args->groups == 0) return 0;
  if (args->groups < 0 || args->groups > 0x7fffffff || args->points < 0) return int(cudaErrorInvalidValue);
  switch (args->family) {
    case GAUSSIAN: return launch_em<GAUSSIAN>(*args, stream);
    case BETA_MOMENTS: return launch_em<BETA_MOMENTS>(*args, stream);
    case BETA_LIKELIHOOD: return launch_em<BETA_LIKELIHOOD>(*args, stream);
    default: return int(cudaErrorInvalidValue);
  }
}
