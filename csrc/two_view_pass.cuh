// The second half of the pass over a row of two views: weights, loss, both gradients. See fastlnl/ops/two_view_loss.
#pragma once

#include "two_view_row.cuh"

namespace fastlnl {

constexpr float LOW = 1e-4f, HIGH = 1 - 1e-4f;  // probabilities of the entropy stay in between

FASTLNL_DEVICE float clamped(float p) { return fminf(fmaxf(p, LOW), HIGH); }
// p where the clamp leaves it alone.
FASTLNL_DEVICE float unclamped(float p) { return p >= LOW && p <= HIGH ? p : 0.0f; }

template <class Format, int LANES, int UNITS>
struct TwoViewPass : TwoViewRow<Format, LANES, UNITS> {
  using Row = TwoViewRow<Format, LANES, UNITS>;
  using typename Row::Bits, typename Row::Lanes;
  using Row::N, Row::SIZE, Row::SLOT, Row::args, Row::keeps, Row::width, Row::label, Row::top, Row::sums, Row::apart;
  using Row::prediction, Row::finite;
  using Row::again, Row::by_units, Row::each, Row::each_aligned, Row::forget, Row::gradient_row, Row::inside;
  using Row::logit, Row::place, Row::probability, Row::shift;

  // Clean probability and similarity weight of the row at hand: from the table, or what the launch before found there.
  FASTLNL_DEVICE void weights_of(int64_t row, int32_t count, float& tau, float& eps) const {
    tau = eps = 0;
    if (width == 0) return;
    if (args.mode == COUPLED) {
      tau = load(args.weights + row), eps = load(args.weights + args.rows.batch + row);
    } else {
      const int64_t group = args.groups > 1 ? label : 0;
      const float* cell = args.lookup + 2 * (group * args.depth + std::clamp<int64_t>(count, 0, args.depth - 1));
      tau = load(cell), eps = load(cell + 1);
    }
  }

  // After `look`, all threads together as there: what the row gives out. A row that was only counted has width 0 now.
  FASTLNL_DEVICE void finish(int64_t row, int32_t count) {
    const RowArgs& rows = args.rows;
    const int mode = args.mode;
    const bool writes = width > 0 && Lanes::lane() == 0;
    float tau, eps;
    weights_of(row, count, tau, eps);
    if (writes && mode != COUPLED) store_predictions(row, prediction[WEAK], prediction[STRONG]);

    float found[3] = {};  // of q log q, and of p (log q + 1) where the clamp leaves p alone
    Best best;
    each([&](int k, Columns columns) {
      float v[2][N];
      again(k, columns, v);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float pw = probability(WEAK, v[WEAK][i]), ps = probability(STRONG, v[STRONG][i]);
        const float q = 0.5f * (clamped(pw) + clamped(ps)), log_q = logf(q);
        if (inside(columns.at(i))) {
          found[0] += q * log_q;
          best.meet(q, columns.at(i));
        }
        found[1] += unclamped(pw) * (log_q + 1);
        found[2] += unclamped(ps) * (log_q + 1);
      }
    });
    Lanes::reduce(found, Plus{});
    if (mode != PLAIN) best = Best::of(Lanes::reduce(best.key(), Larger{}));
    forget();
    const float uncertain = (tau - 1) * found[0];  // (1 - tau) H
    if (mode == MEASURE) {
      if (writes) measured(row, tau, eps, best.value, uncertain);
      return;
    }

    // Factor of (1 - tau) H, and the derivative of the sum of the losses by the row's max q, halved.
    float factor = 1, half = 0, level[2];
    if (mode == SAMPLE) {
      factor = best.value, half = 0.5f * uncertain;
    } else if (mode == COUPLED) {
      const float counted = fmaxf(load(args.totals + 2), 1.0f);
      factor = load(args.totals) / counted, half = 0.5f * (load(args.totals + 1) / counted);
    }
    const float slope = 0.5f * factor * (tau - 1), per_class = 1.0f / float(rows.classes);
    float x_label = 0;
#pragma unroll
    for (int view = 0; view < 2; ++view) {
      x_label += logit(view, label) - top[view];
      level[view] = tau - slope * found[1 + view];
      if (mode != PLAIN && width > 0) level[view] -= half * unclamped(probability(view, logit(view, best.column)));
    }
    const float similar = eps == 0 ? 0.0f : eps * (apart * per_class);
    const float value = tau * (logf(sums[WEAK]) + logf(sums[STRONG]) - x_label) + similar + factor * uncertain;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    if (writes) store(rows.loss + row, finite ? value : nan);
    gradients(row, tau, eps * (2 * per_class), slope, half, best.column, level, finite ? rows.grad_scale : nan);
  }

  FASTLNL_DEVICE void store_predictions(int64_t row, int weak, int strong) const {
    store(args.rows.prediction + row, int64_t(weak));
    store(args.rows.prediction + args.rows.batch + row, int64_t(strong));
  }

  FASTLNL_DEVICE void measured(int64_t row, float tau, float eps, float top_q, float uncertain) const {
    const int64_t batch = args.rows.batch;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    store(args.weights + row, tau);
    store(args.weights + batch + row, eps);
    store(args.terms + row, finite ? top_q : nan);
    store(args.terms + batch + row, finite ? uncertain : nan);
    store(args.terms + 2 * batch + row, 1.0f);
  }

  FASTLNL_DEVICE void gradients(int64_t row, float tau, float pull, float slope, float half, int best,
                                const float (&level)[2], float factor) {
    Bits* dlogits[2];
    bool leaves[2];  // single columns of a wide row leave in slots, by way of the place of their logits
#pragma unroll
    for (int view = 0; view < 2; ++view) {
      dlogits[view] = gradient_row(view, width > 0 ? row : 0);
      leaves[view] = UNITS == 0 && keeps && !by_units() &&
                     head_shift(reinterpret_cast<uintptr_t>(dlogits[view]), SIZE) == shift(view);
    }
    each([&](int k, Columns columns) {
      float v[2][N];
      Bits out[2][N];
      again(k, columns, v);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float pw = probability(WEAK, v[WEAK][i]), ps = probability(STRONG, v[STRONG][i]);
        float h = slope * (logf(0.5f * (clamped(pw) + clamped(ps))) + 1);
        if (columns.at(i) == best) h += half;
        const float given = columns.at(i) == label ? tau : 0.0f, d = (v[STRONG][i] - v[WEAK][i]) * pull;
        out[WEAK][i] = Format::bits(factor * (pw * level[WEAK] - given + (unclamped(pw) * h - d)));
        out[STRONG][i] = Format::bits(factor * (ps * level[STRONG] - given + (unclamped(ps) * h + d)));
      }
#pragma unroll
      for (int view = 0; view < 2; ++view)
        store_slot(leaves[view] ? place(view) : dlogits[view], columns, width, out[view]);
    });
    if constexpr (UNITS == 0) {
      if (keeps) __syncthreads();  // for what leaves, and before the next row arrives
#pragma unroll
      for (int view = 0; view < 2; ++view)
        if (leaves[view])
          each_aligned(shift(view), [&](Columns columns) {
            Bits bits[SLOT];
            load_slot(place(view), columns, width, Bits(0), bits);
            store_slot(dlogits[view], columns, width, bits);
          });
    }
  }

  // Padding, label or id out of range: everything is 0.
  FASTLNL_DEVICE void refuse(int64_t row) {
    const RowArgs& rows = args.rows;
    const bool measures = args.mode == MEASURE;
    width = rows.classes;
    if (!measures) {
      const Bits zero[N] = {};
      each([&](int, Columns columns) {
        for (int view = 0; view < 2; ++view) store_slot(gradient_row(view, row), columns, width, zero);
      });
    }
    if (Lanes::lane() > 0) return;
    if (!measures) store(rows.loss + row, 0.0f);
    for (int i = 0; i < 3 && measures; ++i) store(args.terms + i * rows.batch + row, 0.0f);
    if (args.mode != COUPLED) store_predictions(row, 0, 0);
  }
};

}  // namespace fastlnl
