// Counts and means of values in bins: fastlnl/ops/value_histogram.
//
// Four launches: clear, range, fill, finish. One group is filled in shared memory, a histogram a block; several groups,
// or more bins than fit there, in global memory. Losses crowd in few bins, where atomics of one address would wait for
// each other: so the lanes of a warp that share a bin add once.
#include "bins.cuh"
#include "teams.cuh"

namespace fastlnl {

constexpr int NO_KEY = 0x7fffffff;

// Orders floats as integers; its own inverse.
FASTLNL_DEVICE int key_of(int bits) { return bits ^ (bits >> 31 & 0x7fffffff); }

FASTLNL_DEVICE float value_of(int key) { return __uint_as_float(uint32_t(key_of(key))); }

FASTLNL_DEVICE Range range_of(const HistogramArgs& args, int64_t g) {
  if (args.given != nullptr) return {load(args.given + 2 * g), load(args.given + 2 * g + 1)};
  const int first = load(args.keys + g), last = -1 - load(args.keys + args.groups + g);
  if (first > last) return {0, 0};  // an empty group
  return {value_of(first), value_of(last)};
}

__global__ void clear_kernel(const HistogramArgs args) {
  const int64_t cells = args.groups * args.bins, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < cells; i += step) {
    store(args.counts + i, int64_t(0));
    store(reinterpret_cast<int64_t*>(args.mean) + i, int64_t(0));  // the sum of the offsets, until the end
    if (i < args.groups) store(args.left_out + i, int64_t(0));
    if (i < 2 * args.groups && args.keys != nullptr) store(args.keys + i, NO_KEY);
  }
}

FASTLNL_DEVICE void lower(int32_t* address, int key) {
  FASTLNL_SEES(ATOMIC, address, sizeof(int32_t));
  atomicMin(address, key);
}

// keys[g] and keys[groups + g]: the lowest key, and the lowest of -1 - key.
__global__ void __launch_bounds__(FILL_THREADS) range_kernel(const HistogramArgs args) {
  FASTLNL_DYNAMIC_SHARED(dynamic);
  const Shared<int> keys{reinterpret_cast<int*>(dynamic)};
  const int groups = int(args.groups), thread = int(threadIdx.x);
  if (groups == 1) {
    int lowest[2] = {NO_KEY, NO_KEY};
    each_tile(args.x, args.group, args.n, args.groups, [&](const float(&x)[PER_THREAD], const int64_t(&g)[PER_THREAD]) {
#pragma unroll
      for (int i = 0; i < PER_THREAD; ++i) {
        const int key = key_of(int(__float_as_uint(x[i])));
        const bool counts = g[i] >= 0 && fabsf(x[i]) < INFINITE;
        lowest[0] = counts ? std::min(lowest[0], key) : lowest[0];
        lowest[1] = counts ? std::min(lowest[1], -1 - key) : lowest[1];
      }
    });
    Team<0>::reduce(lowest, Smaller{});
    if (thread == 0) lower(args.keys, lowest[0]);
    if (thread == 1) lower(args.keys + 1, lowest[1]);
    return;
  }
  const bool is_private = groups <= PRIVATE_GROUPS;
  if (is_private) {
    for (int i = thread; i < 2 * groups; i += FILL_THREADS) keys.set(i, NO_KEY);
    __syncthreads();
  }
  each_tile(args.x, args.group, args.n, args.groups, [&](const float(&x)[PER_THREAD], const int64_t(&g)[PER_THREAD]) {
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i) {
      if (g[i] < 0 || !(fabsf(x[i]) < INFINITE)) continue;
      const int key = key_of(int(__float_as_uint(x[i])));
      if (is_private) {
        keys.smallest(int(g[i]), key);
        keys.smallest(groups + int(g[i]), -1 - key);
      } else {
        lower(args.keys + g[i], key);
        lower(args.keys + args.groups + g[i], -1 - key);
      }
    }
  });
  if (!is_private) return;
  __syncthreads();
  for (int i = thread; i < 2 * groups; i += FILL_THREADS)
    if (keys.get(i) != NO_KEY) lower(args.keys + i, keys.get(i));
}

FASTLNL_DEVICE void count_left_out(const HistogramArgs& args, float x, int64_t g) {
  if (g >= 0 && !(fabsf(x) < INFINITE)) add(args.left_out + g, 1);
}

// Counts and sums of 32 bits a bin in shared memory; emptied into global memory before a sum can overflow.
__global__ void __launch_bounds__(FILL_THREADS) fill_shared_kernel(const HistogramArgs args, int offset_bits) {
  FASTLNL_DYNAMIC_SHARED(dynamic);
  const Shared<uint32_t> cells{reinterpret_cast<uint32_t*>(dynamic)};
  const int bins = args.bins, thread = int(threadIdx.x), tiles_until_full = (1 << (32 - offset_bits)) / TILE_VALUES;
  const Range range = range_of(args, 0);
  for (int i = thread; i < 2 * bins; i += FILL_THREADS) cells.set(i, 0);
  const auto flush = [&] {
    __syncthreads();
    for (int i = thread; i < bins; i += FILL_THREADS) {
      if (cells.get(i) == 0) continue;
      add(args.counts + i, cells.get(i));
      add(reinterpret_cast<int64_t*>(args.mean) + i, cells.get(bins + i));
      cells.set(i, 0);
      cells.set(bins + i, 0);
    }
    __syncthreads();
  };
  __syncthreads();
  int tiles = 0;
  each_tile(args.x, args.group, args.n, args.groups, [&](const float(&x)[PER_THREAD], const int64_t(&g)[PER_THREAD]) {
    if (tiles == tiles_until_full) {
      flush();
      tiles = 0;
    }
    ++tiles;
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i) {
      count_left_out(args, x[i], g[i]);
      const bool live = g[i] >= 0 && range.has(x[i]);
      const int position = live ? range.position(x[i]) : 0;
      add_together(live, position >> offset_bits, uint32_t(position & ((1 << offset_bits) - 1)),
                   [&](int bin, int count, uint32_t sum) {
                     cells.add(bin, uint32_t(count));
                     cells.add(bins + bin, sum);
                   });
    }
  });
  flush();
}

__global__ void __launch_bounds__(FILL_THREADS) fill_global_kernel(const HistogramArgs args, int offset_bits) {
  each_tile(args.x, args.group, args.n, args.groups, [&](const float(&x)[PER_THREAD], const int64_t(&g)[PER_THREAD]) {
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i) {
      count_left_out(args, x[i], g[i]);
      const Range range = range_of(args, g[i] < 0 ? 0 : g[i]);
      const bool live = g[i] >= 0 && range.has(x[i]);
      const int position = live ? range.position(x[i]) : 0;
      add_together(live, g[i] * args.bins + (position >> offset_bits),
                   uint32_t(position & ((1 << offset_bits) - 1)), [&](int64_t cell, int count, uint32_t sum) {
                     add(args.counts + cell, count);
                     add(reinterpret_cast<int64_t*>(args.mean) + cell, sum);
                   });
    }
  });
}

__global__ void finish_kernel(const HistogramArgs args, int offset_bits) {
  const int64_t cells = args.groups * args.bins, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < cells; i += step) {
    const int64_t g = i / args.bins;
    const int bin = int(i % args.bins);
    const Range range = range_of(args, g);
    const int64_t offsets = load(reinterpret_cast<int64_t*>(args.mean) + i);
    store(args.mean + i, range.mean(bin << offset_bits, load(args.counts + i), offsets));
    if (bin < 2) store(args.limits + 2 * g + bin, bin == 0 ? range.low : range.high);
  }
}

}  // namespace fastlnl

int fastlnl_value_histogram(const fastlnl::HistogramArgs* args, void* stream) {
  using namespace fastlnl;
  const int64_t n = args->n, groups = args->groups, cells = groups * args->bins;
  if (groups == 0) return 0;
  if (n < 0 || groups < 0 || args->bins < 256 || args->bins > 65536) return int(cudaErrorInvalidValue);
  constexpr int THREADS = 256;
  const int offset_bits = offset_bits_of(args->bins);
  const int64_t blocks = std::min<int64_t>((cells + THREADS - 1) / THREADS, 1 << 20);
  FASTLNL_LAUNCH(clear_kernel, blocks, THREADS, 0, stream, *args);
  if (n > 0) {
    const int processors = device_has(cudaDevAttrMultiProcessorCount);
    const int64_t tiles = tiles_of(n, 2 * processors);
    const int keys = groups > 1 && groups <= PRIVATE_GROUPS ? int(groups) * 8 : 0, histogram = args->bins * 8;
    if (args->given == nullptr) FASTLNL_LAUNCH(range_kernel, tiles, FILL_THREADS, keys, stream, *args);
    if (groups == 1 && may_share(fill_shared_kernel, histogram))
      FASTLNL_LAUNCH(fill_shared_kernel, tiles, FILL_THREADS, histogram, stream, *args, offset_bits);
    else
      FASTLNL_LAUNCH(fill_global_kernel, tiles_of(n, 8 * processors), FILL_THREADS, 0, stream, *args, offset_bits);
  }
  FASTLNL_LAUNCH(finish_kernel, blocks, THREADS, 0, stream, *args, offset_bits);
  return int(cudaGetLastError());
}
