// A value becomes y = 1 + SPAN (x - low) / (high - low) in [1, 16]; the bits of y as a float, less those of 1, are its
// position, whose upper bits are the bin: fastlnl/ops/value_histogram.
#pragma once

#include "common.cuh"

namespace fastlnl {

constexpr float ONE = 1, SPAN = 15;
constexpr int BINADES = 4, MANTISSA_BITS = 23, POSITION_BITS = 25, POSITIONS = BINADES << MANTISSA_BITS;  // 2^25
constexpr int FILL_THREADS = 512, PER_THREAD = 4, TILE_VALUES = FILL_THREADS * PER_THREAD;

struct Range {
  double low, high, scale;

  FASTLNL_DEVICE Range(double low, double high) : low(low), high(high), scale(high > low ? SPAN / (high - low) : 0) {}

  // Of a value from low to high. Bin for bin as everywhere else: the product is rounded before the sum.
  FASTLNL_DEVICE int position(double x) const {
    const float y = float(__dadd_rn(1, __dmul_rn(__dadd_rn(x, -low), scale)));
    return std::min(int(__float_as_uint(y) - __float_as_uint(ONE)), POSITIONS - 1);
  }

  FASTLNL_DEVICE bool has(float x) const { return fabsf(x) < INFINITE && x >= low && x <= high; }

  // Mean of the values in the cell that begins at a position, from the sum of their offsets from there.
  FASTLNL_DEVICE double mean(int begin, int64_t count, int64_t offsets) const {
    if (count == 0) return 0;
    const double inner = double(begin & ((1 << MANTISSA_BITS) - 1)) + double(offsets) / double(count);
    const double y = (1 + inner / (1 << MANTISSA_BITS)) * double(1 << (begin >> MANTISSA_BITS));
    const double found = low + (y - 1) * ((high - low) / SPAN);
    return found < high ? found : high;
  }
};

// Bits of a position below its bin.
inline int offset_bits_of(int bins) {
  int bits = POSITION_BITS;
  for (; bins > 1; bins /= 2) --bits;
  return bits;
}

inline int64_t tiles_of(int64_t n, int most) { return std::min<int64_t>((n + TILE_VALUES - 1) / TILE_VALUES, most); }

// body(values, groups) for PER_THREAD neighbours of this thread at a time; outside of the data, and in no group, the
// group is -1. All threads of a block go through the same number of tiles.
template <class Body>
FASTLNL_DEVICE void each_tile(const float* values, const int64_t* group, int64_t n, int64_t groups, Body body) {
  for (int64_t tile = blockIdx.x; tile * TILE_VALUES < n; tile += gridDim.x) {
    const int64_t begin = tile * TILE_VALUES;
    const int here = int(std::min<int64_t>(n - begin, TILE_VALUES)), first = int(threadIdx.x) * PER_THREAD;
    uint32_t bits[PER_THREAD];
    load_slot(reinterpret_cast<const uint32_t*>(values) + begin, {first, 1}, here, 0u, bits);
    float x[PER_THREAD];
    int64_t g[PER_THREAD];
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i) {
      x[i] = __uint_as_float(bits[i]);
      g[i] = first + i >= here ? -1 : group == nullptr ? 0 : load(group + begin + first + i);
      if (g[i] >= groups) g[i] = -1;
    }
    body(x, g);
  }
}

// add(cell, count, sum of offsets), once for all lanes with the same cell while those are many. Called by whole warps.
template <class Cell, class Add>
FASTLNL_DEVICE void add_together(bool live, Cell cell, uint32_t offset, Add add) {
  const int lane = int(threadIdx.x) % 32;
  for (int few = 0; few < 2;) {
    const unsigned left = __ballot_sync(WARP, live);
    if (left == 0) break;
    const int leader = __ffs(int(left)) - 1;
    const Cell common = __shfl_sync(WARP, cell, leader);
    const bool same = live && cell == common;
    const int many = __popc(__ballot_sync(WARP, same));
    const uint32_t sum = __reduce_add_sync(WARP, same ? offset : 0);  // 32 offsets of at most 17 bits
    if (lane == leader) add(cell, many, sum);
    live = live && !same;
    few += many < 4;
  }
  if (live) add(cell, 1, offset);
}

}  // namespace fastlnl
