// How the row pass enters its rows in the records of their samples: fastlnl/ops/dynamics, in the same launch.
//
// The first lane of a team notes what a row's statistics say and enters it once the row is finished, when registers are
// free again. All occurrences of an id belong to one team, which takes them in batch order; so each record has one
// reader and one writer. Counts of the epoch are added up in the block, and by the block once.
#pragma once

#include "record.cuh"

namespace fastlnl {

struct Ledger {
  using Word = unsigned long long;
  static constexpr int NUMBERS = 5, BEFORE = NUMBERS, COUNTS = ERRORS - ROWS;
  Shared<float> numbers;  // (6, MAX_BLOCK_ROWS): nll, p_label, confidence, margin, entropy, moving average before
  Shared<int> predictions;
  Shared<Word> tally;

  FASTLNL_DEVICE void open() const {  // a barrier follows
    if (threadIdx.x < COUNTS) tally.set(int(threadIdx.x), 0);
  }

  FASTLNL_DEVICE void note(int place, float nll, float p_label, float confidence, float margin, float entropy,
                           int prediction) const {
    const float found[NUMBERS] = {nll, p_label, confidence, margin, entropy};
#pragma unroll
    for (int i = 0; i < NUMBERS; ++i) numbers.set(i * MAX_BLOCK_ROWS + place, found[i]);
    predictions.set(place, prediction);
  }

  FASTLNL_DEVICE float noted(int row, int place) const { return numbers.get(row * MAX_BLOCK_ROWS + place); }

  // What was noted of an occurrence of the sample; `first`: in the batch.
  FASTLNL_DEVICE void enter(const BookArgs& book, int place, int64_t sample, int label, bool first) const {
    Presentation row{label, predictions.get(place)};
    row.nll = noted(0, place), row.margin = noted(3, place);
    row.mean = noted(book.mean_row, place), row.ema = noted(book.ema_row, place);
    row.kept = noted(book.kept_row, place), row.more_events = 0;
    Record record{};
    Tally sums{};
    record.read(book.records, sample);
    // The moving average starts from its value before the batch; NaN: there was none.
    const float before = record.seen ? record.ema : std::numeric_limits<float>::quiet_NaN();
    if (first) numbers.set(BEFORE * MAX_BLOCK_ROWS + place, before);
    record.old_ema = noted(BEFORE, place), record.seen = record.old_ema == record.old_ema;
    record.enter(row, book.momentum, learns_at(book), sums);
    if (record.entered) {
      record.write(book.records, sample);
      write_ring(book, sample, record.kept);
    }
#pragma unroll
    for (int i = 0; i < COUNTS; ++i)
      if (sums.sums[i] != 0) tally.add(i, Word(sums.sums[i]));
  }

  FASTLNL_DEVICE void close(const BookArgs& book) const {
    __syncthreads();
    const int i = int(threadIdx.x);
    if (i < COUNTS && tally.get(i) != 0) add(book.counters + ROWS + i, int64_t(tally.get(i)));
  }
};

}  // namespace fastlnl
