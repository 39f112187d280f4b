// One pass over rows of logits: the row's sums, loss, gradient, label memory, statistics. See fastlnl/ops/row_loss.
//
// A row belongs to a team of threads (geometry.h), each thread to some of its columns: to whole slots of 16 bytes where
// these divide the number of classes, else to single columns with those of the other lanes in between, so that each
// access of a warp is one stretch of memory whatever its alignment. Nobody else touches a thread's columns, neither in
// the logits nor in gradient, target or table.
// A tile keeps its logits (and targets) in registers. A wide row keeps its logits in shared memory; they come, and the
// gradient leaves, by slots aligned in memory (head, body and tail), with barriers in between. A row that does not fit
// there is read three times. Targets of wide rows are read twice.
#pragma once

#include "losses.cuh"
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

// SLOTS slots a thread in registers, or with 0 as many as the row takes.
template <class Format, int SOURCE, int LANES, int SLOTS>
struct RowPass {
  using Bits = typename Format::Bits;
  using Lanes = Team<LANES>;
  static constexpr int N = SLOT_BYTES / int(sizeof(Bits)), HELD = SLOTS > 0 ? SLOTS : 1;
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

  FASTLNL_DEVICE bool by_slots() const { return args.classes % N == 0; }

  // body(k, columns) for this thread's share of the row; k is a constant for a tile.
  template <int AHEAD, class Body>
  FASTLNL_DEVICE void each(Body body) const {
    const int begin = Lanes::lane() * (by_slots() ? N : 1), step = by_slots() ? 1 : Lanes::size();
    if constexpr (SLOTS > 0) {
#pragma unroll
      for (int k = 0; k < SLOTS; ++k) body(k, Columns{k * N * LANES + begin, step});
    } else {
#pragma unroll AHEAD
      for (int k = 0; k * N * Lanes::size() + begin < width; ++k) body(k, Columns{k * N * Lanes::size() + begin, step});
    }
  }

  // body(columns) for this thread's share of a wide row in slots aligned in memory.
  template <int AHEAD, class Body>
  FASTLNL_DEVICE void each_aligned(Body body) const {
#pragma unroll AHEAD
    for (int column = Lanes::lane() * N - shift; column < width; column += Lanes::size() * N) body(Columns{column, 1});
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
    if (SLOTS == 0 && keeps) {
      each_aligned<4>([&](Columns columns) {
        Bits bits[N];
        load_slot(logits, columns, width, Format::bits(-INFINITE), bits);
        store_slot(kept + shift, columns, width, bits);
#pragma unroll
        for (int i = 0; i < N; ++i) top = fmaxf(top, Format::value(bits[i]));
      });
    } else {
      each<4>([&](int k, Columns columns) {
        float v[N];
        decode_slot<Format>(logits, columns, width, -INFINITE, v);
        if constexpr (WITH_TARGET && SLOTS > 0) read_target(row, columns, r[k]);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          top = fmaxf(top, v[i]);
          if constexpr (SLOTS > 0) z[k][i] = v[i];
        }
      });
    }
    return top;
  }

  FASTLNL_DEVICE void again(int k, Columns columns, float (&v)[N]) const {
    if constexpr (SLOTS > 0) {
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

  FASTLNL_DEVICE void refuse(int64_t row) {  // label or id out of range: everything is 0
    const Bits zero[N] = {};
    if (SOURCE != STATS_ONLY)
      each<2>([&](int, Columns columns) { store_slot(dlogits, columns, width, zero); });
    if (Lanes::lane() > 0 || width == 0) return;
    if (SOURCE != STATS_ONLY) store(args.loss + row, 0.0f);
    if (args.stats != nullptr) store_stats(row, 0, 0, 0, 0, 0, 0);
  }

  FASTLNL_DEVICE void store_stats(int64_t row, float nll, float p_label, float confidence, float margin, float entropy,
                                  int prediction) const {
    const float values[5] = {nll, p_label, confidence, margin, entropy};
    for (int i = 0; i < 5; ++i) store(args.stats + i * args.batch + row, values[i]);
    store(args.prediction + row, int64_t(prediction));
  }

  // All threads of the warp (of a wide row: of the block) come here together, `live` or not. `stores`: the row of the
  // label memory moves.
  FASTLNL_DEVICE void run(int64_t row, bool live, bool stores) {
    enter(row, live);
    float top = Lanes::reduce(arrive(row), Larger{});

    float sums[WITH_TARGET ? 7 : 3] = {};  // of e, e x, x, r, r x, r e, e e
    each<2>([&](int k, Columns columns) {
      float v[N], t[N];
      again(k, columns, v);
      if constexpr (WITH_TARGET) target_again(row, k, columns, t);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float x = below(v[i], top), e = expf(x);
        sums[0] += e;
        sums[1] += e * x;
        if (inside(columns.at(i))) sums[2] += x;
        if constexpr (WITH_TARGET) {
          sums[3] += t[i];
          sums[4] += t[i] * x;
          sums[5] += t[i] * e;
          sums[6] += e * e;
        }
      }
    });
    Lanes::reduce(sums, Plus{});
    const float log_sum = logf(sums[0]), scale = 1 / sums[0], entropy = log_sum - sums[1] * scale;
    const float z_label = label >= 0 ? Format::value(load(logits + label)) : top;
    const float nll = log_sum - below(z_label, top);
    const bool finite = sums[0] > 0 && sums[0] < INFINITE && fabsf(sums[2]) < INFINITE;

    if (args.stats != nullptr) statistics(row, top, z_label, nll, scale, entropy);
    if constexpr (SOURCE != STATS_ONLY) gradient(row, stores && finite, finite, top, sums, scale, nll, entropy);
  }

  FASTLNL_DEVICE void target_again(int64_t row, int k, Columns columns, float (&t)[N]) const {
    if constexpr (SLOTS > 0) {
#pragma unroll
      for (int i = 0; i < N; ++i) t[i] = r[k][i];
    } else {
      read_target(row, columns, t);
    }
  }

  template <int SUMS>
  FASTLNL_DEVICE void gradient(int64_t row, bool stores, bool finite, float top, const float (&sums)[SUMS], float scale,
                               float nll, float entropy) {
    const float log_sum = logf(sums[0]), r_use = WITH_TARGET ? old.use : 0, p_use = WITH_TARGET ? 1 - r_use : 0;
    Statistics s{nll, entropy, 0, 0, 0};
    if constexpr (WITH_TARGET) {
      s.target_sum = r_use * sums[3] + p_use;
      s.target_p = (r_use * sums[5] + p_use * sums[6] * scale) * scale;
      s.target_logp = r_use * (sums[4] - log_sum * sums[3]) - p_use * entropy;
    }
    Coefficients q = coefficients(args.loss_kind, s, args.parameters);
    float weight = 1;
    if (width > 0 && args.weight != nullptr) weight = load(args.weight + row);
    if (!finite) weight = std::numeric_limits<float>::quiet_NaN();
    if (width > 0 && Lanes::lane() == 0) store(args.loss + row, q.loss * weight);
    weight *= args.grad_scale;
    q.a *= weight, q.b *= weight, q.c *= weight, q.d *= weight, q.e *= weight, q.f *= weight;

    FASTLNL_FORGET(top);
    const float offset = -sums[1] * scale;  // H - log sum e, without the cancellation
    const float keep = old.keep;
    stores = stores && width > 0 && (old.fresh || keep < 1);
    RowKey key{0, 0};
    if (SOURCE == TABLE && stores && args.table_type != FLOAT32) key = row_key(args, old.sample);
    // Single columns of a wide row leave in slots, by way of the place of their logits.
    const bool leaves = SLOTS == 0 && keeps && !by_slots() &&
                        head_shift(reinterpret_cast<uintptr_t>(dlogits), sizeof(Bits)) == shift;
    each<2>([&](int k, Columns columns) {
      float v[N], t[N], moved[N];
      Bits out[N];
      again(k, columns, v);
      if constexpr (WITH_TARGET) target_again(row, k, columns, t);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float x = below(v[i], top), p = expf(x) * scale;
        float dz = q.a + q.d * (x + offset);
        if constexpr (WITH_TARGET) {
          const float target = r_use * t[i] + p_use * p;
          moved[i] = keep * t[i] + (1 - keep) * p;
          dz = p * (dz + q.e * target) + (q.f - q.c * target);
        } else {
          dz = p * dz + q.f;
        }
        if (columns.at(i) == label) dz -= q.b;
        out[i] = Format::bits(dz);
      }
      if (leaves)
        store_slot(kept + shift, columns, width, out);
      else
        store_slot(dlogits, columns, width, out);
      if constexpr (SOURCE == TABLE)
        if (stores) write_table(args, old.sample, columns, width, key, moved);
    });
    if constexpr (SLOTS == 0) {
      if (keeps) __syncthreads();  // for `leave`, and before the next row arrives
      if (leaves) leave();
    }
  }

  FASTLNL_DEVICE void leave() const {
    each_aligned<4>([&](Columns columns) {
      Bits bits[N];
      load_slot(kept + shift, columns, width, Bits(0), bits);
      store_slot(dlogits, columns, width, bits);
    });
  }

  FASTLNL_DEVICE void statistics(int64_t row, float top, float z_label, float nll, float scale, float entropy) {
    float others = -INFINITE;
    int prediction = args.classes - 1;
    each<2>([&](int k, Columns columns) {
      float v[N];
      again(k, columns, v);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (columns.at(i) != label) others = fmaxf(others, v[i]);
        if (inside(columns.at(i)) && v[i] == top && columns.at(i) < prediction) prediction = columns.at(i);
      }
    });
    others = Lanes::reduce(others, Larger{});
    prediction = Lanes::reduce(prediction, Smaller{});
    const float margin = args.classes > 1 ? z_label - others : 0;
    if (width > 0 && Lanes::lane() == 0) store_stats(row, nll, expf(-nll), scale, margin, entropy, prediction);
  }
};

}  // namespace fastlnl
