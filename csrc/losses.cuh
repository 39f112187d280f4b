// The coefficient functions of fastlnl/ops/row_loss/catalogue.py that CUDA serves. They run once a row, so which one is
// chosen while the kernel runs: one kernel for every loss.
#pragma once

#include "common.cuh"

namespace fastlnl {

struct Statistics {
  float nll, entropy, target_sum, target_p, target_logp;
};

// dz_j = a p_j - b [j = y] - c t_j + e p_j t_j + d p_j (log p_j + H) + f
struct Coefficients {
  float loss, a, b, c, d, e, f;
};

struct CrossEntropy {
  static FASTLNL_DEVICE Coefficients of(const Statistics& s, const float*) { return {s.nll, 1, 1, 0, 0, 0, 0}; }
};

struct SoftCrossEntropy {  // SELC as well
  static FASTLNL_DEVICE Coefficients of(const Statistics& s, const float*) {
    return {-s.target_logp, s.target_sum, 0, 1, 0, 0, 0};
  }
};

struct AdaptiveLabelRefinement {
  static FASTLNL_DEVICE Coefficients of(const Statistics& s, const float* q) {
    const float entropy_weight = q[0], undetached = q[1];
    return {entropy_weight * s.entropy - s.target_logp, s.target_sum, 0, 1, -(entropy_weight + undetached), 0, 0};
  }
};

struct EarlyLearning {
  static FASTLNL_DEVICE Coefficients of(const Statistics& s, const float* q) {
    const float weight = q[0], floor = q[1], gap = 1 - s.target_p, floored = gap > floor ? gap : floor;
    const float pull = gap > floor ? weight / floored : 0.0f;
    return {s.nll + weight * logf(floored), 1 + pull * s.target_p, 1, 0, 0, -pull, 0};
  }
};

struct GeneralisedCrossEntropy {
  static FASTLNL_DEVICE Coefficients of(const Statistics& s, const float* q) {
    const float power = expf(-q[0] * s.nll);
    return {(1 - power) / q[0], power, power, 0, 0, 0, 0};
  }
};

FASTLNL_DEVICE Coefficients coefficients(int loss, const Statistics& s, const float* parameters) {
  switch (loss) {
    case CROSS_ENTROPY: return CrossEntropy::of(s, parameters);
    case SOFT_CROSS_ENTROPY: return SoftCrossEntropy::of(s, parameters);
    case ALR: return AdaptiveLabelRefinement::of(s, parameters);
    case ELR: return EarlyLearning::of(s, parameters);
    default: return GeneralisedCrossEntropy::of(s, parameters);
  }
}

}  // namespace fastlnl
