// Records of a topk table: K class ids, K float16 values, and in float16 the mass that all other classes share evenly.
// See fastlnl/ops/row_loss/storage.py. Ids are 16-bit words, or two of them (the low one first) above 65,536 classes.
#pragma once

#include "rounding.cuh"
#include "teams.cuh"

namespace fastlnl {

struct TopkRecord {
  uint16_t* words;
  int kept, words_per_id;

  FASTLNL_DEVICE TopkRecord(const RowArgs& args, void* row)
      : words(static_cast<uint16_t*>(row)), kept(args.kept), words_per_id(args.classes <= 65536 ? 1 : 2) {}

  FASTLNL_DEVICE int id(int i) const {
    const uint16_t* place = words + i * words_per_id;
    return words_per_id == 1 ? load(place) : int(load(place) | uint32_t(load(place + 1)) << 16);
  }
  FASTLNL_DEVICE float value(int i) const { return Half::value(load(words + kept * words_per_id + i)); }  // K: the rest

  FASTLNL_DEVICE void set_id(int i, int column) const {
    uint16_t* place = words + i * words_per_id;
    store(place, uint16_t(column));
    if (words_per_id > 1) store(place + 1, uint16_t(column >> 16));
  }
  FASTLNL_DEVICE void set_value(int i, float x, uint32_t word) const {
    store(words + kept * words_per_id + i, round_half(x, word));
  }
};

// Columns outside [0, width) become 0. A row that was never written is negative in its first column.
template <int N>
FASTLNL_DEVICE void read_topk(const RowArgs& args, char* row, Columns columns, int width, float (&v)[N]) {
  const TopkRecord record(args, row);
  const int kept = width > 0 ? record.kept : 0;
  const float share = width > 0 ? record.value(kept) * (1 / float(std::max(args.classes - kept, 1))) : 0;
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = unsigned(columns.at(i)) < unsigned(width) ? share : 0;
#pragma unroll 1
  for (int k = 0; k < kept; ++k) {
    const int id = record.id(k);
    const float value = record.value(k);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = columns.at(i) == id ? value : v[i];
  }
}

// Larger for a larger value >= 0, and at equal values for the lower column; never 0.
FASTLNL_DEVICE uint64_t rank_of(float value, int column) {
  return uint64_t(__float_as_uint(value)) << 32 | ~uint32_t(column);
}

// The largest of the row's new values and the sum of the others, if `stores`; all threads of the warp (of a wide row:
// of the block) come together, after the old record was read. mine(body) calls body(column, value) for the columns of a
// thread.
template <class Lanes, class Mine>
FASTLNL_DEVICE void write_topk(const RowArgs& args, char* row, bool stores, RowKey key, Mine mine) {
  if (!Lanes::any(stores)) return;
  const TopkRecord record(args, row);
  const auto best_below = [&](uint64_t limit) {
    uint64_t best = 0;
    mine([&](int column, float value) {
      const uint64_t rank = rank_of(value, column);
      if (rank < limit && rank > best) best = rank;
    });
    return best;
  };
  uint64_t found = ~uint64_t(0), next = found;
#pragma unroll 1
  for (int k = 0; k < record.kept; ++k) {
    if (next == found) next = best_below(found);  // this thread's best was taken
    found = Lanes::reduce(next, Larger{});
    if (!stores || found != next) continue;
    const int column = int(~uint32_t(found));
    record.set_id(k, column);
    record.set_value(k, __uint_as_float(uint32_t(found >> 32)), random_word(key, column));
  }
  float rest = 0;
  mine([&](int column, float value) { rest += rank_of(value, column) < found ? value : 0; });
  rest = Lanes::reduce(rest, Plus{});
  if (stores && Lanes::lane() == 0) record.set_value(record.kept, rest, random_word(key, args.classes));
}

}  // namespace fastlnl
