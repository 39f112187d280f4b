// What is remembered of a sample, 32 bytes, and how one presentation moves it: fastlnl/ops/dynamics.
#pragma once

#include "common.cuh"

namespace fastlnl {

// As in fastlnl/ops/dynamics/layout.py.
constexpr int RECORD_WORDS = 8;
constexpr uint32_t FULL = 65535;
enum Counter { EPOCH, CURSOR, STORED, ROWS, CHANGED, CORRECT, LOSS, SKIPPED, ERRORS };
constexpr float LOSS_LIMIT = 131072, LOSSES_PER_NAT = 16777216;
constexpr float LOG_ODDS_LIMIT = 6, HISTORY_LIMIT = 65504;

FASTLNL_DEVICE uint32_t stop_when_full(uint32_t count) { return count < FULL ? count : FULL; }

// One presentation: given label, predicted class, the numbers of its row, further wrong events.
struct Presentation {
  int64_t label, prediction;
  float nll, margin, mean, ema, kept;
  uint32_t more_events;

  FASTLNL_DEVICE bool finite() const {
    return fabsf(nll) < INFINITE && fabsf(margin) < INFINITE && fabsf(mean) < INFINITE && fabsf(ema) < INFINITE;
  }
};

struct Tally {
  int64_t sums[5];  // rows, changed, correct, loss, skipped: the counters from ROWS on

  FASTLNL_DEVICE int64_t& of(Counter counter) { return sums[counter - ROWS]; }
};

struct Record {
  uint32_t visits, events, flips, forgotten, last, learned, last_wrong;  // last: 1 + prediction
  float mean, deviations, ema, margins;
  float old_ema, kept;
  bool seen, entered;

  FASTLNL_DEVICE void read(const int32_t* records, int64_t sample) {
    uint32_t w[RECORD_WORDS];
    load_slot(reinterpret_cast<const uint32_t*>(records) + sample * RECORD_WORDS, {0, 1}, RECORD_WORDS, 0u, w);
    visits = w[0] & FULL, events = w[0] >> 16, flips = w[1] & FULL, forgotten = w[1] >> 16;
    last = w[2], learned = w[3] & FULL, last_wrong = w[3] >> 16;
    mean = __uint_as_float(w[4]), deviations = __uint_as_float(w[5]);
    ema = old_ema = __uint_as_float(w[6]), margins = __uint_as_float(w[7]);
    seen = visits > 0, entered = false, kept = 0;
  }

  FASTLNL_DEVICE void write(int32_t* records, int64_t sample) const {
    const uint32_t w[RECORD_WORDS] = {visits | events << 16, flips | forgotten << 16,    last,
                                      learned | last_wrong << 16, __float_as_uint(mean), __float_as_uint(deviations),
                                      __float_as_uint(ema),       __float_as_uint(margins)};
    store_slot(reinterpret_cast<uint32_t*>(records) + sample * RECORD_WORDS, {0, 1}, RECORD_WORDS, w);
  }

  // `learns`: 1 + the epoch. A row that is no number is counted, nothing else.
  FASTLNL_DEVICE void enter(const Presentation& row, float momentum, uint32_t learns, Tally& tally) {
    if (!row.finite()) {
      ++tally.of(SKIPPED);
      return;
    }
    const bool wrong = row.prediction != row.label, flip = last != 0 && int64_t(last) != row.prediction + 1;
    if (visits < FULL) {
      ++visits;
      const float moved = mean + (row.mean - mean) / float(visits);
      deviations += (row.mean - mean) * (row.mean - moved);
      mean = moved;
      margins += row.margin;
    }
    events = stop_when_full(events + wrong + row.more_events);
    flips = stop_when_full(flips + flip);
    forgotten = stop_when_full(forgotten + (wrong && int64_t(last) == row.label + 1));
    if (wrong) last_wrong = visits;
    if (!wrong && learned == 0) learned = learns;
    last = uint32_t(row.prediction + 1);
    ema = seen ? momentum * old_ema + (1 - momentum) * row.ema : row.ema;
    kept = row.kept;
    entered = true;
    ++tally.of(ROWS);
    tally.of(CHANGED) += flip;
    tally.of(CORRECT) += !wrong;
    tally.of(LOSS) += int64_t(fminf(row.nll, LOSS_LIMIT) * LOSSES_PER_NAT);
  }
};

// What the ring takes of a statistic.
FASTLNL_DEVICE float ring_value(float x, bool log_odds) {
  if (log_odds) {
    x = fminf(fmaxf(x, 1e-3f), 1 - 1e-3f);  // no log(0), and wider than the limit
    x = fminf(fmaxf(logf(x / (1 - x)), -LOG_ODDS_LIMIT), LOG_ODDS_LIMIT);
  }
  return fminf(x, HISTORY_LIMIT);
}

FASTLNL_DEVICE void write_ring(const BookArgs& book, int64_t sample, float kept) {
  if (book.history == nullptr) return;
  const int64_t cell = load(book.counters + CURSOR) * book.num_samples + sample;
  const float value = ring_value(kept, book.log_odds);
  if (book.half)
    store(static_cast<uint16_t*>(book.history) + cell, Half::bits(value));
  else
    store(static_cast<float*>(book.history) + cell, value);
}

FASTLNL_DEVICE uint32_t learns_at(const BookArgs& book) {
  return uint32_t(std::min<int64_t>(load(book.counters + EPOCH) + 1, FULL));
}

}  // namespace fastlnl
