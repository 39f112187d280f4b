// Counters, look-up, loss and both gradients of two views in one pass over their logits: fastlnl/ops/two_view_loss.
//
// Of several occurrences of an id in the batch the row with the last one (the leader) counts the events of all, reads
// the table and writes all their rows; the others leave. So each counter has one reader and one writer, without atomics
// and in one launch. The row of an id that comes once is read from memory once.
#include "two_view_pass.cuh"

namespace fastlnl {

// Blocks a multiprocessor shall hold at once: as many as registers allow without spilling.
template <int LANES>
constexpr int TWO_VIEW_RESIDENT = LANES == 0 ? 2 : 4;
// From 257 columns on a row has a block: two rows of 1,024 in one warp are 64 registers a thread.
constexpr int TWO_VIEW_TILES = 3;

// How the leader of an id goes through its occurrences: it counts them up to its own row, then its own row and after it
// the earlier ones give out what they have.
struct Tour {
  int first, current;
  bool counting = true;

  FASTLNL_DEVICE bool live(int64_t row) const { return current <= row; }
  FASTLNL_DEVICE bool arrived(int64_t row) const { return counting && current == row; }
  FASTLNL_DEVICE bool finishes(int64_t row) const { return live(row) && (!counting || current == row); }

  template <class Lanes>
  FASTLNL_DEVICE void move(const RowArgs& rows, int64_t sample, int64_t row) {
    const bool earlier = current < row;
    int next = Occurrences::NONE;
    if (Lanes::any(earlier)) next = next_occurrence<Lanes>(rows, sample, current);
    if (earlier) {
      current = !counting && next >= row ? Occurrences::NONE : next;
    } else {
      current = live(row) && first < row ? first : Occurrences::NONE;
      counting = false;
    }
  }
};

template <class Format, int LANES, int UNITS>
__global__ void __launch_bounds__(LANES > 0 ? TILE_THREADS : WIDE_THREADS, TWO_VIEW_RESIDENT<LANES>)
two_view_kernel(const TwoViewArgs args, int rounds, bool keeps) {
  using Pass = TwoViewPass<Format, LANES, UNITS>;
  using Lanes = typename Pass::Lanes;
  FASTLNL_DYNAMIC_SHARED(dynamic);
  Pass pass{{args, keeps, reinterpret_cast<typename Pass::Bits*>(dynamic)}};
  const RowArgs& rows = args.rows;
  const bool counts = args.mode != COUPLED;
  const int teams = LANES > 0 ? TILE_THREADS / Lanes::size() : 1;
  const int64_t begin = int64_t(blockIdx.x) * teams * rounds;
  FASTLNL_SHARED(int64_t, ids, MAX_BLOCK_ROWS);
  FASTLNL_SHARED(int, firsts, MAX_BLOCK_ROWS);
  FASTLNL_SHARED(int, lasts, MAX_BLOCK_ROWS);
  const Occurrences occurrences{ids, firsts, lasts};
  if (counts) occurrences.find(rows, begin, teams * rounds);

  for (int round = 0; round < rounds; ++round) {
    const int place = round * teams + Lanes::number();
    const int64_t row = begin + place;
    const bool exists = row < rows.batch;
    const int64_t label = exists ? load(rows.label + row) : 0, sample = exists ? load(rows.index + row) : PADDING;
    const bool label_fits = label >= 0 && label < rows.classes;
    const bool valid = label_fits && sample >= 0 && sample < rows.num_samples;
    if (exists && !valid) {
      if (Lanes::lane() == 0 && sample != PADDING)
        report(rows.errors, label_fits ? BAD_ID : BAD_LABEL, row, sample, label_fits ? sample : label);
      pass.refuse(row);
    }
    bool leads = exists && valid;
    Tour tour{int(row), Occurrences::NONE};
    int32_t old = 0, count = 0;
    uint32_t events = 0;
    if (counts && leads) {
      leads = occurrences.last.get(place) == row;
      tour.first = occurrences.first.get(place);
      old = leads ? load(args.wrong_count + sample) : 0;
    }
    if (leads) tour.current = tour.first;
    while (Lanes::any(tour.live(row))) {
      const bool finishes = tour.finishes(row);
      pass.look(tour.current, tour.live(row));
      if (tour.live(row) && tour.counting) events += pass.events();
      if (tour.arrived(row) && counts) {
        const int64_t sum = int64_t(old) + events;
        const int32_t stopped = int32_t(sum < LAST_COUNT ? sum : LAST_COUNT);
        if (Lanes::lane() == 0) store(args.wrong_count + sample, stopped);
        count = args.before ? stopped : old;
      }
      if (Lanes::any(finishes)) {
        if (!finishes) pass.width = 0;
        pass.finish(tour.current, count);
      }
      tour.template move<Lanes>(rows, sample, row);
    }
  }
}

template <class Format, int TILE>
int launch_two_view_tile(const TwoViewArgs& args, const Geometry& geometry, void* stream) {
  constexpr Tile tile = TILES[TILE];
  const auto kernel = two_view_kernel<Format, tile.lanes, tile.units()>;
  FASTLNL_LAUNCH(kernel, geometry.blocks, geometry.threads, 0, stream, args, geometry.rounds, false);
  return int(cudaGetLastError());
}

template <class Format>
int launch_two_view_wide(const TwoViewArgs& args, const Geometry& geometry, void* stream) {
  const auto kernel = two_view_kernel<Format, 0, 0>;
  const int64_t bytes = 2 * TwoViewPass<Format, 0, 0>::place_slots(args.rows.classes) * SLOT_BYTES;
  const bool keeps = may_share(kernel, bytes);
  FASTLNL_LAUNCH(kernel, geometry.blocks, geometry.threads, keeps ? int(bytes) : 0, stream, args, 1, keeps);
  return int(cudaGetLastError());
}

template <class Format>
int launch_two_views(const TwoViewArgs& args, void* stream) {
  const RowArgs& rows = args.rows;
  if (rows.batch == 0) return 0;
  if (rows.batch < 0 || rows.batch > 1 << 30 || rows.classes < 1 || rows.classes > 1 << 30)
    return int(cudaErrorInvalidValue);
  const Geometry geometry = row_geometry(rows.batch, rows.classes, args.mode != COUPLED, TWO_VIEW_TILES);
  switch (geometry.tile) {
    case 0: return launch_two_view_tile<Format, 0>(args, geometry, stream);
    case 1: return launch_two_view_tile<Format, 1>(args, geometry, stream);
    case 2: return launch_two_view_tile<Format, 2>(args, geometry, stream);
    default: return launch_two_view_wide<Format>(args, geometry, stream);
  }
}

}  // namespace fastlnl

int fastlnl_two_view_loss(const fastlnl::TwoViewArgs* args, void* stream) {
  using namespace fastlnl;
  return with_format(args->rows.logits_type,
                     [&](auto format) { return launch_two_views<decltype(format)>(*args, stream); });
}
