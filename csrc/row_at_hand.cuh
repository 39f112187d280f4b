// A row of logits and its target: to whom its columns belong, where it is kept, how it is read.
//
// A row belongs to a team of threads (geometry.h), each of its columns to one thread: whole units of neighbours where
// these divide the number of classes, else single columns with those of the other lanes in between, so that each
// access of a warp is one stretch of memory whatever its alignment. Nobody else touches a thread's columns, neither in
// the logits nor in gradient, target or table. Units have four columns in every type, so the order of additions, and
// with it the bits of a row's sums, are the same for half-precision logits as for their values in float32.
// A tile keeps its logits (and targets) in registers. A wide row keeps its logits in shared memory; they come, and the
// gradient leaves, by slots aligned in memory (head, body and tail), with barriers in between. A row that does not fit
// there is read three times. Targets of wide rows are read twice.
#pragma once

#include "table.cuh"

namespace fastlnl {

enum Source { STATS_ONLY, NO_TARGET, DENSE, TABLE };

constexpr float FAR = -1e30f;  // -inf logits count as this far below the maximum: probability 0, and 0 * log 0 = 0

FASTLNL_DEVICE float below(float z, float top) {
  const float x = z - top;
  return x < FAR ? FAR : x;  // NaN stays NaN
}

// What a row sees of the label memory.
struct OldRow {
  int64_t sample = 0;
  bool fresh = false;
  float use = 1, keep = 1;
};

// UNITS units a thread in registers, or with 0 as many as the row takes.
template <class Format, int SOURCE, int LANES, int UNITS>
struct RowAtHand {
  using Bits = typename Format::Bits;
  using Lanes = Team<LANES>;
  static constexpr int N = UNIT, SLOT = SLOT_BYTES / int(sizeof(Bits)), HELD = UNITS > 0 ? UNITS : 1;
  static constexpr bool WITH_TARGET = SOURCE == DENSE || SOURCE == TABLE;

  const RowArgs& args;
  const bool keeps;  // the logits of a wide row in shared memory, `shift` elements behind its begin, if they fit
  Bits* const kept;
  float z[HELD][N], r[HELD][N];

  // The row at hand.
  const Bits* logits;
  Bits* dlogits;
  int width, shift, label;  // width 0: no row, every access is left out
  OldRow old;

  FASTLNL_DEVICE bool by_units() const { return args.classes % N == 0; }

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
  FASTLNL_DEVICE void each_aligned(Body body) const {
#pragma unroll 4
    for (int column = Lanes::lane() * SLOT - shift; column < width; column += Lanes::size() * SLOT)
      body(Columns{column, 1});
  }

  FASTLNL_DEVICE bool inside(int column) const { return unsigned(column) < unsigned(width); }

  FASTLNL_DEVICE void enter(int64_t row, bool live) {
    logits = static_cast<const Bits*>(args.logits) + (live ? row * args.row_stride : 0);
    dlogits = static_cast<Bits*>(args.dlogits) + (live ? row * args.classes : 0);
    width = live ? args.classes : 0;
    shift = head_shift(reinterpret_cast<uintptr_t>(logits), sizeof(Bits));
    label = live && args.label != nullptr ? int(load(args.label + row)) : -1;
  }

  // Reads the row and returns the largest of this thread's logits. Columns outside get probability 0.
  FASTLNL_DEVICE float arrive(int64_t row) {
    float top = -INFINITE;
    if (UNITS == 0 && keeps) {
      each_aligned([&](Columns columns) {
        Bits bits[SLOT];
        load_slot(logits, columns, width, Format::bits(-INFINITE), bits);
        store_slot(kept + shift, columns, width, bits);
#pragma unroll
        for (int i = 0; i < SLOT; ++i) top = fmaxf(top, Format::value(bits[i]));
      });
    } else {
      each([&](int k, Columns columns) {
        float v[N];
        decode_slot<Format>(logits, columns, width, -INFINITE, v);
        if constexpr (WITH_TARGET && UNITS > 0) read_target(row, columns, r[k]);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          top = fmaxf(top, v[i]);
          if constexpr (UNITS > 0) z[k][i] = v[i];
        }
      });
    }
    return top;
  }

  FASTLNL_DEVICE void again(int k, Columns columns, float (&v)[N]) const {
    if constexpr (UNITS > 0) {
#pragma unroll
      for (int i = 0; i < N; ++i) v[i] = z[k][i];
    } else if (keeps) {
      decode_slot<Format>(kept + shift, columns, width, -INFINITE, v);
    } else {
      decode_slot<Format>(logits, columns, width, -INFINITE, v);
    }
  }

  FASTLNL_DEVICE void read_target(int64_t row, Columns columns, float (&v)[N]) const {
    if (SOURCE == DENSE) {
      decode_slot<Float>(reinterpret_cast<const uint32_t*>(args.target) + (width > 0 ? row * args.classes : 0), columns,
                         width, 0, v);
    } else if (old.fresh && args.one_hot) {
#pragma unroll
      for (int i = 0; i < N; ++i) v[i] = columns.at(i) == label ? 1.0f : 0.0f;
    } else {
      read_table(args, old.sample, columns, width, v);
    }
  }

  // How a row of the label memory is used and moved: t = use R + (1 - use) p, R <- keep R + (1 - keep) p.
  FASTLNL_DEVICE void look_up(int64_t sample, bool live) {
    float start[1] = {0};
    if (live) read_table(args, sample, {0, 1}, 1, start);
    old.sample = sample;
    old.fresh = start[0] < 0;
    old.use = old.fresh && !args.one_hot ? 0 : args.use;
    old.keep = old.fresh && !args.one_hot ? 0 : args.keep;
  }

  FASTLNL_DEVICE void target_again(int64_t row, int k, Columns columns, float (&t)[N]) const {
    if constexpr (UNITS > 0) {
#pragma unroll
      for (int i = 0; i < N; ++i) t[i] = r[k][i];
    } else {
      read_target(row, columns, t);
    }
  }
};

}  // namespace fastlnl
