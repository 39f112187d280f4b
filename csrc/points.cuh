// The weighted points of one group, mapped to [0, 1], and what its threads find out about them together.
#pragma once

#include "mixture.cuh"
#include "teams.cuh"

namespace fastlnl {

constexpr int EM_THREADS = 512;

// The threads that fit one group: a block. What they come to know together has the same bits in each.
struct OneBlock {
  int64_t group;

  static constexpr int number = 0, blocks = 1;

  template <int N, class Operation>
  FASTLNL_DEVICE void reduce(double (&v)[N], Operation operation) const {
    Team<0>::reduce(v, operation);
  }

  template <class Operation>
  FASTLNL_DEVICE double reduce(double x, Operation operation) const {
    return Team<0>::reduce(x, operation);
  }

  // The sum over the threads before this one, and over all; called by all of the block.
  FASTLNL_DEVICE double sum_before(double x, double& total) const {
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
};

// Or a grid of blocks that run at once. Each block writes its part of a sum down, all meet, and each adds up all parts
// in the same order. Parts have two places in turn: who writes into one has met the others since they read it.
struct WholeGrid {
  static constexpr int PARTS = 8;

  int64_t group;
  const EMArgs& args;
  int number, blocks, turn = 0;

  FASTLNL_DEVICE WholeGrid(int64_t group, const EMArgs& args)
      : group(group), args(args), number(int(blockIdx.x)), blocks(int(gridDim.x)) {}

  FASTLNL_DEVICE double* part(int block) const { return args.sums + (2 * block + turn) * PARTS; }

  template <int N>
  FASTLNL_DEVICE void tell(const double (&v)[N]) const {
    static_assert(N <= PARTS);
    if (threadIdx.x == 0)
#pragma unroll
      for (int n = 0; n < N; ++n) store(part(number) + n, v[n]);
    grid_barrier();
  }

  template <int N, class Operation>
  FASTLNL_DEVICE void reduce(double (&v)[N], Operation operation) {
    Team<0>::reduce(v, operation);
    tell(v);
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] = Operation::NOTHING;
    for (int block = int(threadIdx.x); block < blocks; block += EM_THREADS)
#pragma unroll
      for (int n = 0; n < N; ++n) v[n] = operation(v[n], load(part(block) + n));
    Team<0>::reduce(v, operation);
    turn ^= 1;
  }

  template <class Operation>
  FASTLNL_DEVICE double reduce(double x, Operation operation) {
    double v[1] = {x};
    reduce(v, operation);
    return v[0];
  }

  FASTLNL_DEVICE double sum_before(double x, double& total) {
    double sums[2];  // of the blocks before, of all
    const double inside = OneBlock{group}.sum_before(x, sums[1]);
    tell({sums[1]});
    sums[0] = sums[1] = 0;
    for (int block = int(threadIdx.x); block < blocks; block += EM_THREADS) {
      const double sum = load(part(block));
      sums[0] += block < number ? sum : 0;
      sums[1] += sum;
    }
    Team<0>::reduce(sums, Plus{});
    turn ^= 1;
    total = sums[1];
    return sums[0] + inside;
  }
};

struct Point {
  double n, z, log_z, log_rest;  // logarithms for Beta only
};

struct Ends {
  double total, whole, first, last, between;  // sums of counts and values; the ends, and how many lie elsewhere
};

// A block has a stretch of them.
template <int FAMILY, class Crew>
struct Points {
  static constexpr int KEPT = FAMILY == GAUSSIAN ? 2 : 4;  // numbers a point

  const EMArgs& args;
  Crew& crew;
  const int capacity;
  const Shared<double> kept;  // n of all, z of all, ...
  int64_t begin, size;
  double low, high, width;
  bool stays = false;  // in shared memory, in order, without those that count nothing

  FASTLNL_DEVICE Points(const EMArgs& args, Crew& crew, int capacity, double* memory)
      : args(args), crew(crew), capacity(capacity), kept{memory} {
    const int64_t first = load(args.offset + crew.group), all = load(args.offset + crew.group + 1) - first;
    const int64_t from = all * crew.number / crew.blocks, to = all * (crew.number + 1) / crew.blocks;
    begin = first + from, size = to - from;
    low = load(args.limits + 2 * crew.group), high = load(args.limits + 2 * crew.group + 1);
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
      const int place = int(there + int64_t(OneBlock{crew.group}.sum_before(counts, more)));
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

  FASTLNL_DEVICE Ends ends() {
    double sums[2] = {0, 0}, least[2] = {INFINITE, INFINITE}, between = 0;
    each([&](const Point& p) {
      sums[0] += p.n;
      sums[1] += p.n * p.z;
      least[0] = std::min(least[0], p.z);
      least[1] = std::min(least[1], -p.z);
    });
    crew.reduce(sums, Plus{});
    crew.reduce(least, Smaller{});
    each([&](const Point& p) { between += p.z == least[0] || p.z == -least[1] ? 0 : p.n; });
    return {sums[0], sums[1], least[0], -least[1], crew.reduce(between, Plus{})};
  }
};

}  // namespace fastlnl
