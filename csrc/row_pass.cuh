// One pass over a row of logits: its sums, loss, gradient, label memory, statistics. See fastlnl/ops/row_loss.
#pragma once

#include "book.cuh"
#include "losses.cuh"
#include "row_at_hand.cuh"

namespace fastlnl {

template <class Format, int SOURCE, int LANES, int UNITS>
struct RowPass : RowAtHand<Format, SOURCE, LANES, UNITS> {
  using Row = RowAtHand<Format, SOURCE, LANES, UNITS>;
  using typename Row::Bits, typename Row::Lanes;
  using Row::N, Row::SLOT, Row::WITH_TARGET, Row::args, Row::keeps, Row::kept, Row::z, Row::r;
  using Row::logits, Row::dlogits, Row::width, Row::shift, Row::label, Row::old;
  using Row::again, Row::arrive, Row::by_units, Row::each, Row::each_aligned, Row::enter, Row::inside;
  using Row::target_again;

  FASTLNL_DEVICE void refuse(int64_t row) {  // label or id out of range: everything is 0
    const Bits zero[N] = {};
    if (SOURCE != STATS_ONLY)
      each([&](int, Columns columns) { store_slot(dlogits, columns, width, zero); });
    if (Lanes::lane() > 0 || width == 0) return;
    if (SOURCE != STATS_ONLY) store(args.loss + row, 0.0f);
    if (args.stats != nullptr) store_stats(row, 0, 0, 0, 0, 0, 0);
  }

  Ledger ledger;  // where the statistics go if there is a book, at the row's place in the block

  FASTLNL_DEVICE void store_stats(int64_t row, float nll, float p_label, float confidence, float margin, float entropy,
                                  int prediction) const {
    const float values[5] = {nll, p_label, confidence, margin, entropy};
    for (int i = 0; i < 5; ++i) store(args.stats + i * args.batch + row, values[i]);
    store(args.prediction + row, int64_t(prediction));
  }

  // All threads of the warp (of a wide row: of the block) come here together, `live` or not. `stores`: the row of the
  // label memory moves.
  FASTLNL_DEVICE void run(int64_t row, int place, bool live, bool stores) {
    enter(row, live);
    float top = Lanes::reduce(arrive(row), Larger{});

    float sums[WITH_TARGET ? 7 : 3] = {};  // of e, e x, x, r, r x, r e, e e
    each([&](int k, Columns columns) {
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

    if (args.stats != nullptr || args.book.records != nullptr)
      statistics(row, place, top, z_label, nll, scale, entropy);
    if constexpr (SOURCE != STATS_ONLY) gradient(row, stores && finite, finite, top, sums, scale, nll, entropy);
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
    const bool leaves = UNITS == 0 && keeps && !by_units() &&
                        head_shift(reinterpret_cast<uintptr_t>(dlogits), sizeof(Bits)) == shift;
    each([&](int k, Columns columns) {
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
      if constexpr (SOURCE == TABLE) {
        if (args.table_type == TOPK)
          hold(row, k, columns, stores, moved);
        else if (stores)
          write_table(args, old.sample, columns, width, key, moved);
      }
    });
    if constexpr (SOURCE == TABLE)
      if (args.table_type == TOPK) keep_best(row, stores, key);
    if constexpr (UNITS == 0) {
      if (keeps) __syncthreads();  // for `leave`, and before the next row arrives
      if (leaves) leave();
    }
  }

  FASTLNL_DEVICE float* moved_row(int64_t row) const { return args.moved + (width > 0 ? row * args.classes : 0); }

  // The new row of a topk table waits until all of it is known: a tile's in registers, a wide one in memory.
  FASTLNL_DEVICE void hold(int64_t row, int k, Columns columns, bool stores, const float (&moved)[N]) {
    if constexpr (UNITS > 0) {
#pragma unroll
      for (int i = 0; i < N; ++i) r[k][i] = moved[i];
    } else if (stores) {
      uint32_t bits[N];
#pragma unroll
      for (int i = 0; i < N; ++i) bits[i] = __float_as_uint(moved[i]);
      store_slot(reinterpret_cast<uint32_t*>(moved_row(row)), columns, width, bits);
    }
  }

  FASTLNL_DEVICE void keep_best(int64_t row, bool stores, RowKey key) const {
    write_topk<Lanes>(args, table_row(args, old.sample), stores, key, [&](auto body) {
      each([&](int k, Columns columns) {
        float v[N];
        if constexpr (UNITS > 0) {
#pragma unroll
          for (int i = 0; i < N; ++i) v[i] = r[k][i];
        } else {
          decode_slot<Float>(moved_row(row), columns, width, 0, v);
        }
#pragma unroll
        for (int i = 0; i < N; ++i)
          if (inside(columns.at(i))) body(columns.at(i), v[i]);
      });
    });
  }

  FASTLNL_DEVICE void leave() const {
    each_aligned([&](Columns columns) {
      Bits bits[SLOT];
      load_slot(kept + shift, columns, width, Bits(0), bits);
      store_slot(dlogits, columns, width, bits);
    });
  }

  FASTLNL_DEVICE void statistics(int64_t row, int place, float top, float z_label, float nll, float scale,
                                 float entropy) {
    float others = -INFINITE;
    int prediction = args.classes - 1;
    each([&](int k, Columns columns) {
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
    if (width == 0 || Lanes::lane() > 0) return;
    const float p_label = expf(-nll);
    if (args.stats != nullptr) store_stats(row, nll, p_label, scale, margin, entropy, prediction);
    if (SOURCE != STATS_ONLY && args.book.records != nullptr)
      ledger.note(place, nll, p_label, scale, margin, entropy, prediction);
  }
};

}  // namespace fastlnl
