// A row of two views: where it is kept, and the first half of its pass, up to predictions and sums.
//
// Rows belong to teams of threads, and columns to threads, as in row_at_hand.cuh, the same in both views. A tile keeps
// both rows in registers, a wide row keeps them in shared memory, one behind the other; where they do not fit there
// they are read four times.
#pragma once

#include "table.cuh"

namespace fastlnl {

constexpr int32_t LAST_COUNT = 0x7fffffff;  // where a counter stops

enum View { WEAK, STRONG };

// The largest of some values and its lowest column, in one number that is larger the larger the value, and at equal
// values the lower the column.
struct Best {
  float value = -INFINITE;
  int column = LAST_COUNT;

  FASTLNL_DEVICE void meet(float other, int its_column) {  // columns come in ascending order
    if (other > value) value = other, column = its_column;
  }
  FASTLNL_DEVICE uint64_t key() const {
    const uint32_t bits = __float_as_uint(value + 0.0f);  // -0 is 0
    return uint64_t(bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u)) << 32 | ~uint32_t(column);
  }
  static FASTLNL_DEVICE Best of(uint64_t key) {
    const uint32_t bits = uint32_t(key >> 32);
    return {__uint_as_float(bits ^ (bits >> 31 ? 0x80000000u : 0xffffffffu)), int(~uint32_t(key))};
  }
};

// UNITS units of each view a thread in registers, or with 0 as many as the row takes.
template <class Format, int LANES, int UNITS>
struct TwoViewRow {
  using Bits = typename Format::Bits;
  using Lanes = Team<LANES>;
  static constexpr int SIZE = sizeof(Bits), N = UNIT, SLOT = SLOT_BYTES / SIZE, HELD = UNITS > 0 ? UNITS : 1;
  static constexpr int WORDS = N * SIZE / 4;  // of a unit

  const TwoViewArgs& args;
  const bool keeps;  // wide rows in shared memory, `shift` elements behind the begin of their place, if they fit
  Bits* const kept;
  uint32_t z[2][HELD][WORDS];  // a tile's logits as memory holds them: half as many registers for 16 bits

  // The row at hand.
  const Bits* logits[2];
  int width, label;  // width 0: no row, every access is left out
  float top[2], sums[2], scale[2], apart;  // maxima, sums of exponentials and their inverse, sum of (zs - zw)^2
  int prediction[2];
  bool finite;

  FASTLNL_DEVICE bool by_units() const { return args.rows.classes % N == 0; }
  FASTLNL_DEVICE bool inside(int column) const { return unsigned(column) < unsigned(width); }
  FASTLNL_DEVICE int shift(int view) const { return head_shift(reinterpret_cast<uintptr_t>(logits[view]), SIZE); }
  FASTLNL_DEVICE Bits* place(int view) const {
    return kept + view * place_slots(args.rows.classes) * SLOT + shift(view);
  }
  FASTLNL_DEVICE Bits* gradient_row(int view, int64_t row) const {
    return static_cast<Bits*>(args.rows.dlogits) + (view * args.rows.batch + row) * args.rows.classes;
  }
  // Of a view's place in shared memory.
  static constexpr int64_t place_slots(int classes) { return slot_count(classes, SLOT - 1, SIZE); }

  // body(k, columns) for this thread's share of the row; k is a constant for a tile.
  template <class Body>
  FASTLNL_DEVICE void each(Body body) const {
    const int begin = Lanes::lane() * (by_units() ? N : 1), step = by_units() ? 1 : Lanes::size();
    if constexpr (UNITS > 0) {
#pragma unroll
      for (int k = 0; k < UNITS; ++k) body(k, Columns{k * N * LANES + begin, step});
    } else {
#pragma unroll 2
      for (int k = 0; k * N * Lanes::size() + begin < width; ++k) body(k, Columns{k * N * Lanes::size() + begin, step});
    }
  }

  // body(columns) for this thread's share of a wide row in slots aligned in memory.
  template <class Body>
  FASTLNL_DEVICE void each_aligned(int from, Body body) const {
#pragma unroll 4
    for (int column = Lanes::lane() * SLOT - from; column < width; column += Lanes::size() * SLOT)
      body(Columns{column, 1});
  }

  // Both views of this thread's share, again.
  FASTLNL_DEVICE void again(int k, Columns columns, float (&v)[2][N]) const {
#pragma unroll
    for (int view = 0; view < 2; ++view) {
      if constexpr (UNITS > 0) {
#pragma unroll
        for (int i = 0; i < N; ++i) v[view][i] = Format::value(Bits(z[view][k][i * SIZE / 4] >> i * SIZE % 4 * 8));
      } else if (keeps) {
        decode_slot<Format>(place(view), columns, width, -INFINITE, v[view]);
      } else {
        decode_slot<Format>(logits[view], columns, width, -INFINITE, v[view]);
      }
    }
  }

  FASTLNL_DEVICE void enter(int64_t row, bool live) {
    const RowArgs& rows = args.rows;
    logits[WEAK] = static_cast<const Bits*>(rows.logits) + (live ? row * rows.row_stride : 0);
    logits[STRONG] = static_cast<const Bits*>(args.strong) + (live ? row * args.strong_stride : 0);
    width = live ? rows.classes : 0;
    label = live ? int(load(rows.label + row)) : 0;
  }

  // Reads both rows; the best of this thread's columns. Columns outside get probability 0.
  FASTLNL_DEVICE void arrive(Best (&best)[2]) {
    if (UNITS == 0 && keeps) {
#pragma unroll
      for (int view = 0; view < 2; ++view)
        each_aligned(shift(view), [&](Columns columns) {
          Bits bits[SLOT];
          load_slot(logits[view], columns, width, Format::bits(-INFINITE), bits);
          store_slot(place(view), columns, width, bits);
#pragma unroll
          for (int i = 0; i < SLOT; ++i) best[view].meet(Format::value(bits[i]), columns.at(i));
        });
    } else {
      each([&](int k, Columns columns) {
        Bits bits[2][N];
#pragma unroll
        for (int view = 0; view < 2; ++view)
          load_slot(logits[view], columns, width, Format::bits(-INFINITE), bits[view]);
#pragma unroll
        for (int view = 0; view < 2; ++view) {
          uint32_t words[WORDS] = {};
#pragma unroll
          for (int i = 0; i < N; ++i) {
            best[view].meet(Format::value(bits[view][i]), columns.at(i));
            words[i * SIZE / 4] |= uint32_t(bits[view][i]) << i * SIZE % 4 * 8;
          }
          if constexpr (UNITS > 0)
            for (int i = 0; i < WORDS; ++i) z[view][k][i] = words[i];
        }
      });
    }
  }

  // A wide row has too many columns to keep their exponentials: they are computed again from here on.
  FASTLNL_DEVICE void forget() {
    if constexpr (UNITS == 0) {
      FASTLNL_FORGET(top[WEAK]);
      FASTLNL_FORGET(top[STRONG]);
    }
  }

  // All threads of the warp (of a wide row: of the block) come here together, `live` or not: maxima, predictions, sums.
  FASTLNL_DEVICE void look(int64_t row, bool live) {
    enter(row, live);
    Best best[2];
    arrive(best);
    uint64_t keys[2] = {best[WEAK].key(), best[STRONG].key()};
    Lanes::reduce(keys, Larger{});
#pragma unroll
    for (int view = 0; view < 2; ++view) {
      const Best found = Best::of(keys[view]);
      top[view] = found.value, prediction[view] = found.column;
    }
    float found[4] = {};  // of ew, es, d, d d
    each([&](int k, Columns columns) {
      float v[2][N];
      again(k, columns, v);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float d = inside(columns.at(i)) ? v[STRONG][i] - v[WEAK][i] : 0.0f;
        found[0] += expf(v[WEAK][i] - top[WEAK]);
        found[1] += expf(v[STRONG][i] - top[STRONG]);
        found[2] += d;
        found[3] += d * d;
      }
    });
    Lanes::reduce(found, Plus{});
    finite = fabsf(found[2]) < INFINITE;
#pragma unroll
    for (int view = 0; view < 2; ++view) {
      sums[view] = found[view], scale[view] = 1 / found[view];
      if (!finite) prediction[view] = 0;
    }
    apart = found[3];
    forget();
  }

  // How many views were predicted against the label.
  FASTLNL_DEVICE int events() const { return finite ? (prediction[WEAK] != label) + (prediction[STRONG] != label) : 0; }

  FASTLNL_DEVICE float probability(int view, float logit) const { return expf(logit - top[view]) * scale[view]; }

  // What a thread gets of a column far from its own: the view's logit there.
  FASTLNL_DEVICE float logit(int view, int column) const {
    return width > 0 ? Format::value(load(logits[view] + column)) : 0.0f;
  }
};

}  // namespace fastlnl
