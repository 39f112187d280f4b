// The kernel around the row pass: which rows a team takes, in which order, and its launch.
#pragma once

#include "row_pass.cuh"

namespace fastlnl {

// Blocks a multiprocessor shall hold at once: as many as registers allow without spilling.
template <int SOURCE, int LANES, int UNITS>
constexpr int RESIDENT = LANES == 0 ? (SOURCE == TABLE ? 2 : 3)
                         : UNITS > 2 && (SOURCE == DENSE || SOURCE == TABLE) ? 3 : 4;

template <class Format, int SOURCE, int LANES, int UNITS>
__global__ void __launch_bounds__(LANES > 0 ? TILE_THREADS : WIDE_THREADS, RESIDENT<SOURCE, LANES, UNITS>)
rows_kernel(const RowArgs args, int rounds, bool keeps) {
  using Pass = RowPass<Format, SOURCE, LANES, UNITS>;
  using Lanes = typename Pass::Lanes;
  FASTLNL_DYNAMIC_SHARED(dynamic);
  FASTLNL_SHARED(float, noted, (Ledger::NUMBERS + 1) * MAX_BLOCK_ROWS);
  FASTLNL_SHARED(int, predictions, MAX_BLOCK_ROWS);
  FASTLNL_SHARED(Ledger::Word, tally, Ledger::COUNTS);
  const Ledger ledger{noted, predictions, tally};
  Pass pass{{args, keeps, reinterpret_cast<typename Pass::Bits*>(dynamic)}, ledger};
  const int teams = LANES > 0 ? TILE_THREADS / Lanes::size() : 1;
  const int64_t begin = int64_t(blockIdx.x) * teams * rounds;
  FASTLNL_SHARED(int64_t, ids, MAX_BLOCK_ROWS);
  FASTLNL_SHARED(int, firsts, MAX_BLOCK_ROWS);
  FASTLNL_SHARED(int, lasts, MAX_BLOCK_ROWS);
  const Occurrences occurrences{ids, firsts, lasts};
  const bool booked = SOURCE != STATS_ONLY && args.book.records != nullptr;
  if (booked) ledger.open();
  if (SOURCE == TABLE || booked) occurrences.find(args, begin, teams * rounds);

  for (int round = 0; round < rounds; ++round) {
    const int place = round * teams + Lanes::number();
    const int64_t row = begin + place;
    const bool exists = row < args.batch;
    const int64_t label = exists && args.label != nullptr ? load(args.label + row) : 0;
    const int64_t sample = exists && args.index != nullptr ? load(args.index + row) : row;
    const bool label_fits = label >= 0 && label < args.classes;
    const bool valid = label_fits && (SOURCE != TABLE || (sample >= 0 && sample < args.num_samples));
    if (exists && !valid) {
      if (Lanes::lane() == 0 && !(SOURCE == TABLE && sample == PADDING))
        report(args.errors, label_fits ? BAD_ID : BAD_LABEL, row, sample, label_fits ? sample : label);
      pass.enter(row, true);
      pass.refuse(row);
    }
    bool enters = false;
    if (booked && exists) {
      const bool booked_label = label >= 0 && label < args.book.num_classes;
      const bool booked_id = sample >= 0 && sample < args.book.num_samples;
      enters = valid && booked_label && booked_id;
      if (Lanes::lane() == 0 && sample != PADDING && !(booked_label && booked_id))
        report(args.book.counters + ERRORS, booked_label ? BAD_ID : BAD_LABEL, row, sample,
               booked_label ? sample : label);
    }
    // Rows of one sample go together where something of it is moved.
    const bool together = SOURCE == TABLE || enters;
    const bool leads = exists && valid && (!together || occurrences.last.get(place) == row);
    const int first = leads && together ? occurrences.first.get(place) : int(row);
    int current = leads ? first : Occurrences::NONE;
    if constexpr (SOURCE == TABLE) pass.look_up(sample, leads);
    while (Lanes::any(current <= row)) {
      pass.run(current, place, current <= row, current == row);
      if (enters && current <= row && Lanes::lane() == 0)
        ledger.enter(args.book, place, sample, pass.label, current == first);
      if (Lanes::any(current < row)) {
        const int next = next_occurrence<Lanes>(args, sample, current);
        current = current < row ? next : Occurrences::NONE;
      } else {
        current = Occurrences::NONE;
      }
    }
  }
  if (booked) ledger.close(args.book);
}

template <class Format, int SOURCE, int TILE>
int launch_tile(const RowArgs& args, const Geometry& geometry, void* stream) {
  constexpr Tile tile = TILES[TILE];
  const auto kernel = rows_kernel<Format, SOURCE, tile.lanes, tile.units()>;
  FASTLNL_LAUNCH(kernel, geometry.blocks, geometry.threads, 0, stream, args, geometry.rounds, false);
  return int(cudaGetLastError());
}

template <class Format, int SOURCE>
int launch_wide(const RowArgs& args, const Geometry& geometry, void* stream) {
  const auto kernel = rows_kernel<Format, SOURCE, 0, 0>;
  constexpr int SIZE = sizeof(typename Format::Bits);
  const int64_t bytes = slot_count(args.classes, SLOT_BYTES / SIZE - 1, SIZE) * SLOT_BYTES;
  const bool keeps = may_share(kernel, bytes);
  if (SOURCE == TABLE && args.table_type == TOPK && args.moved == nullptr) return int(cudaErrorInvalidValue);
  FASTLNL_LAUNCH(kernel, geometry.blocks, geometry.threads, keeps ? int(bytes) : 0, stream, args, 1, keeps);
  return int(cudaGetLastError());
}

template <class Format, int SOURCE>
int launch_rows(const RowArgs& args, void* stream) {
  if (args.batch == 0) return 0;
  if (args.batch < 0 || args.batch > 1 << 30 || args.classes < 1 || args.classes > 1 << 30)
    return int(cudaErrorInvalidValue);
  const Geometry geometry = row_geometry(args.batch, args.classes, SOURCE == TABLE || args.book.records != nullptr);
  switch (geometry.tile) {
    case 0: return launch_tile<Format, SOURCE, 0>(args, geometry, stream);
    case 1: return launch_tile<Format, SOURCE, 1>(args, geometry, stream);
    case 2: return launch_tile<Format, SOURCE, 2>(args, geometry, stream);
    case 3: return launch_tile<Format, SOURCE, 3>(args, geometry, stream);
    default: return launch_wide<Format, SOURCE>(args, geometry, stream);
  }
}

template <int SOURCE>
int launch_format(const RowArgs& args, void* stream) {
  return with_format(args.logits_type,
                     [&](auto format) { return launch_rows<decltype(format), SOURCE>(args, stream); });
}

}  // namespace fastlnl
