// The weighted points of one group, mapped to [0, 1], and what a block finds out about them together.
#pragma once

#include "mixture.cuh"

namespace fastlnl {

constexpr int EM_THREADS = 512;

// The sum over the threads before this one, and over all; called by all of the block.
FASTLNL_DEVICE double sum_before(double x, double& total) {
  FASTLNL_SHARED(double, warps, EM_THREADS / 32);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  double sum = x;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const double other = __shfl_sync(WARP, sum, (lane - distance) & 31);
    sum += lane >= distance ? other : 0;
  }
  if (lane == 31) warps.set(warp, sum);
  __syncthreads();
  double before = total = 0;
  for (int other = 0; other < EM_THREADS / 32; ++other) {
    if (other == warp) before = total;
    total += warps.get(other);
  }
  __syncthreads();  // the scratch is free again
  return before + (sum - x);
}

struct Point {
  double n, z, log_z, log_rest;  // logarithms for Beta only
};

struct Ends {
  double total, whole, first, last, between;  // sums of counts and values; the ends, and how many lie elsewhere
};

template <int FAMILY>
struct Points {
  static constexpr int KEPT = FAMILY == GAUSSIAN ? 2 : 4;  // numbers a point

  const EMArgs& args;
  const int capacity;
  const Shared<double> kept;  // n of all, z of all, ...
  int64_t begin, size;
  double low, high, width;
  bool stays = false;  // in shared memory, in order, without those that count nothing

  FASTLNL_DEVICE Points(const EMArgs& args, int64_t group, int capacity, double* memory)
      : args(args), capacity(capacity), kept{memory} {
    begin = load(args.offset + group), size = load(args.offset + group + 1) - begin;
    low = load(args.limits + 2 * group), high = load(args.limits + 2 * group + 1);
    width = high > low ? high - low : 1;
    move();
  }

  FASTLNL_DEVICE Point mapped(int64_t i) const {
    const double value = load(args.value + begin + i);
    double z = (value - low) / width, rest = (high - value) / width;
    if (args.clip || FAMILY != GAUSSIAN) z = held(z, 0, 1), rest = held(rest, 0, 1);
    Point p{double(load(args.counts + begin + i)), z, 0, 0};
    if (FAMILY != GAUSSIAN) p.log_z = log(inner(z)), p.log_rest = log(inner(rest));
    return p;
  }

  FASTLNL_DEVICE void move() {
    int64_t there = 0;
    for (int64_t first = 0; first < size; first += EM_THREADS) {
      const int64_t i = first + threadIdx.x;
      const bool counts = i < size && load(args.counts + begin + i) > 0;
      double more = 0;
      const int place = int(there + int64_t(sum_before(counts, more)));
      if (counts && place < capacity) {
        const Point p = mapped(i);
        const double numbers[4] = {p.n, p.z, p.log_z, p.log_rest};
#pragma unroll
        for (int k = 0; k < KEPT; ++k) kept.set(k * capacity + place, numbers[k]);
      }
      there += int64_t(more);
      if (there > capacity) return;
    }
    __syncthreads();
    stays = true;
    size = there;
  }

  FASTLNL_DEVICE Point at(int64_t i) const {
    if (!stays) return mapped(i);
    Point p{kept.get(int(i)), kept.get(capacity + int(i)), 0, 0};
    if (KEPT > 2) p.log_z = kept.get(2 * capacity + int(i)), p.log_rest = kept.get(3 * capacity + int(i));
    return p;
  }

  // body(point) for this thread's share of the points that count.
  template <class Body>
  FASTLNL_DEVICE void each(Body body) const {
    for (int64_t i = threadIdx.x; i < size; i += EM_THREADS) {
      const Point p = at(i);
      if (p.n > 0) body(p);
    }
  }

  FASTLNL_DEVICE Ends ends() const {
    double sums[2] = {0, 0}, least[2] = {INFINITE, INFINITE}, between = 0;
    each([&](const Point& p) {
      sums[0] += p.n;
      sums[1] += p.n * p.z;
      least[0] = std::min(least[0], p.z);
      least[1] = std::min(least[1], -p.z);
    });
    Team<0>::reduce(sums, Plus{});
    Team<0>::reduce(least, Smaller{});
    each([&](const Point& p) { between += p.z == least[0] || p.z == -least[1] ? 0 : p.n; });
    return {sums[0], sums[1], least[0], -least[1], Team<0>::reduce(between, Plus{})};
  }
};

}  // namespace fastlnl
