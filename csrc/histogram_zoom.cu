// The values around one, counted once more in narrower cells: fastlnl/ops/histogram_zoom.
//
// Three launches: clear, fill, and the points. Every value is asked whether it is in the window, hardly any is.
#include "bins.cuh"

namespace fastlnl {

constexpr int WINDOW = 8, PART_BITS = 9, PARTS = 1 << PART_BITS, CELLS = WINDOW * PARTS, POINT_THREADS = 256;

struct Zoomed {
  Range range;
  int first;  // bin of the window

  FASTLNL_DEVICE Zoomed(const ZoomArgs& args, int64_t g, int offset_bits)
      : range(load(args.limits + 2 * g), load(args.limits + 2 * g + 1)) {
    const double at = load(args.at + g), above = at > range.low ? at : range.low;
    const int centre = range.position(above < range.high ? above : range.high) >> offset_bits;
    first = std::max(0, std::min(centre - WINDOW / 2, args.bins - WINDOW));
  }
};

__global__ void __launch_bounds__(POINT_THREADS) zoom_clear_kernel(const ZoomArgs args) {
  const int64_t step = int64_t(gridDim.x) * POINT_THREADS;
  for (int64_t i = int64_t(blockIdx.x) * POINT_THREADS + threadIdx.x; i < 2 * args.groups * CELLS; i += step)
    store(args.cells + i, int64_t(0));
}

__global__ void __launch_bounds__(FILL_THREADS) zoom_fill_kernel(const ZoomArgs args, int offset_bits) {
  const int part_bits = offset_bits - PART_BITS;
  const Zoomed one(args, 0, offset_bits);
  each_tile(args.x, args.group, args.n, args.groups, [&](const float(&x)[PER_THREAD], const int64_t(&g)[PER_THREAD]) {
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i) {
      const Zoomed zoomed = args.groups == 1 || g[i] < 0 ? one : Zoomed(args, g[i], offset_bits);
      const bool inside = g[i] >= 0 && zoomed.range.has(x[i]);
      const int position = inside ? zoomed.range.position(x[i]) : 0;
      const int own = (position >> part_bits) - zoomed.first * PARTS;
      add_together(inside && own >= 0 && own < CELLS, g[i] * CELLS + own,
                   uint32_t(position & ((1 << part_bits) - 1)), [&](int64_t cell, int count, uint32_t sum) {
                     add(args.cells + cell, count);
                     add(args.cells + args.groups * CELLS + cell, sum);
                   });
    }
  });
}

// Bins below the window, parts, bins above it.
__global__ void __launch_bounds__(POINT_THREADS) zoom_points_kernel(const ZoomArgs args, int offset_bits) {
  const int points = args.bins - WINDOW + CELLS, part_bits = offset_bits - PART_BITS;
  const int64_t step = int64_t(gridDim.x) * POINT_THREADS;
  for (int64_t i = int64_t(blockIdx.x) * POINT_THREADS + threadIdx.x; i < args.groups * points; i += step) {
    const int64_t g = i / points;
    const int point = int(i % points);
    const Zoomed zoomed(args, g, offset_bits);
    const int part = point - zoomed.first;
    if (part >= 0 && part < CELLS) {
      const int64_t* cell = args.cells + g * CELLS + part;
      const int64_t count = load(cell), offsets = load(cell + args.groups * CELLS);
      store(args.value + i, zoomed.range.mean((zoomed.first * PARTS + part) << part_bits, count, offsets));
      store(args.counts + i, count);
    } else {
      const int64_t bin = g * args.bins + (part < 0 ? point : point - CELLS + WINDOW);
      store(args.value + i, load(args.bin_mean + bin));
      store(args.counts + i, load(args.bin_counts + bin));
    }
  }
}

}  // namespace fastlnl

int fastlnl_histogram_zoom(const fastlnl::ZoomArgs* args, void* stream) {
  using namespace fastlnl;
  const int64_t groups = args->groups;
  if (groups == 0) return 0;
  if (args->n < 0 || groups < 0 || args->bins < 256 || args->bins > 65536) return int(cudaErrorInvalidValue);
  const int offset_bits = offset_bits_of(args->bins);
  const auto blocks = [](int64_t n) { return std::min<int64_t>((n + POINT_THREADS - 1) / POINT_THREADS, 1 << 20); };
  FASTLNL_LAUNCH(zoom_clear_kernel, blocks(2 * groups * CELLS), POINT_THREADS, 0, stream, *args);
  if (args->n > 0) {
    const int64_t tiles = tiles_of(args->n, 8 * device_has(cudaDevAttrMultiProcessorCount));
    FASTLNL_LAUNCH(zoom_fill_kernel, tiles, FILL_THREADS, 0, stream, *args, offset_bits);
  }
  const int64_t points = groups * (args->bins - WINDOW + CELLS);
  FASTLNL_LAUNCH(zoom_points_kernel, blocks(points), POINT_THREADS, 0, stream, *args, offset_bits);
  return int(cudaGetLastError());
}
