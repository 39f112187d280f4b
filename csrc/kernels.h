// The launchers: plain pointers in, an error code out. They know nothing of torch, their callers nothing of threads.
#pragma once

#include <cstdint>

namespace fastlnl {

enum Type : int32_t { FLOAT32, BFLOAT16, FLOAT16, UINT8, TOPK };
enum Loss : int32_t { CROSS_ENTROPY, SOFT_CROSS_ENTROPY, ALR, ELR, GCE };

constexpr int64_t PADDING = -1;  // the id of a row that only fills up a batch: all its outputs are 0, no error

// The records of fastlnl/ops/dynamics, and which of a row's numbers go where. Without records there is no book.
struct BookArgs {
  int32_t* records;   // (num_samples, 8)
  int64_t* counters;  // (12,)
  void* history;      // (rows, num_samples) float32, or float16
  int64_t num_samples, num_classes;
  int32_t mean_row, ema_row, kept_row, log_odds, half;
  float momentum;
};

// What one pass over rows of logits reads and writes; absent tensors are null. See fastlnl/ops/row_loss/contract.py.
struct RowArgs {
  const void* logits;     // (batch, classes) of logits_type, rows row_stride elements apart
  const int64_t* label;   // (batch,)
  const int64_t* index;   // (batch,)
  const float* target;    // (batch, classes)
  void* table;            // (num_samples, ...) records of table_type, each table_bytes long
  float* moved;           // (batch, classes) to work with: a topk table, rows wider than a tile
  const int64_t* step;    // (), of a table that rounds at random
  const float* weight;    // (batch,)
  float* loss;            // (batch,); row_stats has none
  void* dlogits;          // (batch, classes) of logits_type
  float* stats;           // (5, batch): nll, p_label, confidence, margin, entropy
  int64_t* prediction;    // (batch,), with stats
  int64_t* errors;        // (4,): kind, position, id, value
  int64_t row_stride, batch, num_samples, table_bytes;
  int32_t classes, logits_type, table_type, loss_kind, one_hot, kept;  // kept: K of a topk table
  uint32_t seed;
  float use, keep, grad_scale, parameters[4];
  BookArgs book;  // the rows are entered there, too
};

// See fastlnl/ops/dynamics.
struct DynamicsArgs {
  BookArgs book;
  const int64_t* index;       // (batch,)
  const int64_t* label;       // (batch,)
  const int64_t* prediction;  // (batch,)
  const int64_t* second;      // (batch,), predictions of a second view
  const float* numbers;       // (5, batch)
  int64_t batch;
};

// See fastlnl/ops/value_histogram.
struct HistogramArgs {
  const float* x;         // (n,)
  const int64_t* group;   // (n,)
  const double* given;    // (groups, 2), limits; or null, and then
  int32_t* keys;          // (2, groups) to work with
  int64_t* counts;        // (groups, bins)
  double* mean;           // (groups, bins)
  double* limits;         // (groups, 2)
  int64_t* left_out;      // (groups,)
  int64_t n, groups;
  int32_t bins;
};

// See fastlnl/ops/histogram_zoom. A window of 8 bins in 512 parts each: 4,096 cells.
struct ZoomArgs {
  const float* x;             // (n,)
  const int64_t* group;       // (n,)
  const double* limits;       // (groups, 2)
  const double* at;           // (groups,)
  const double* bin_mean;     // (groups, bins)
  const int64_t* bin_counts;  // (groups, bins)
  int64_t* cells;             // (2, groups, 4096) to work with
  double* value;              // (groups, bins - 8 + 4096)
  int64_t* counts;            // as value
  int64_t n, groups;
  int32_t bins;
};

enum Family : int32_t { GAUSSIAN, BETA_MOMENTS, BETA_LIKELIHOOD };
enum Init : int32_t { LLOYD, QUANTILE, KMEANS };

// See fastlnl/ops/mixture_em.
struct EMArgs {
  const double* value;    // (points,)
  const int64_t* counts;  // (points,)
  const int64_t* offset;  // (groups + 1,)
  const double* limits;   // (groups, 2)
  const double* start;    // (groups, 6)
  const double* draw;     // (groups, 2)
  double* fitted;         // (groups, 7)
  int64_t* info;          // (groups, 3)
  double* odds;           // (groups, 8)
  double* cut;            // (groups,)
  double* sums;           // (most_blocks, 2, 8) to work with where a group has a whole grid; null: a block each
  int64_t points, groups, max_iter, most_blocks;
  int32_t family, init, clip;
  double reg_covar, tol;
};

// See fastlnl/ops/mixture_posterior.
struct PosteriorArgs {
  const float* x;        // (n,)
  const double* odds;    // (groups, 8)
  const int64_t* group;  // (n,)
  float* posterior;      // (n,)
  int64_t n, groups;
  int32_t beta, log_odds;
};

// See fastlnl/ops/select. With `count` samples are selected by digits, without by counting who is better.
struct SelectArgs {
  const float* scores;   // (n,)
  const int64_t* quota;  // (groups,)
  const int64_t* group;  // (n,)
  int8_t* mask;          // (n,)
  float* cut;            // (groups,), filled with what nobody passes
  int32_t* count;        // (groups, 2,048) for one group, (groups, 256) for several: to work with
  int64_t* prefix;       // (groups,)
  int64_t* remaining;    // (groups,)
  int64_t n, groups;
  int32_t largest;
};

// What a launch of two_view_loss does about the entropy; the last two are the launches of "batchmean".
enum TwoViewMode : int32_t { PLAIN, SAMPLE, MEASURE, COUPLED };

// See fastlnl/ops/two_view_loss. `rows` has logits (the weak view), label, index, errors, loss, dlogits
// (2, batch, classes), prediction (2, batch), and the numbers that go with them.
struct TwoViewArgs {
  RowArgs rows;
  const void* strong;    // (batch, classes) of logits_type, rows strong_stride elements apart
  int32_t* wrong_count;  // (num_samples,)
  const float* lookup;   // (groups, depth, 2): clean probability, similarity weight
  float* weights;        // (2, batch), what was found there: MEASURE writes it, COUPLED reads it
  float* terms;          // (3, batch) of MEASURE: max q, (1 - tau) H, 1 for a row that counts
  const float* totals;   // (3,), their sums, for COUPLED
  int64_t strong_stride, groups, depth;
  int32_t mode, before;  // `before`: counters first, then weights
};

}  // namespace fastlnl

extern "C" {

// 0, or the cudaError_t of the launch. `stream` is a cudaStream_t.
int fastlnl_row_loss(const fastlnl::RowArgs* args, void* stream);
int fastlnl_row_stats(const fastlnl::RowArgs* args, void* stream);
int fastlnl_dynamics(const fastlnl::DynamicsArgs* args, void* stream);
int fastlnl_value_histogram(const fastlnl::HistogramArgs* args, void* stream);
int fastlnl_histogram_zoom(const fastlnl::ZoomArgs* args, void* stream);
int fastlnl_mixture_em(const fastlnl::EMArgs* args, void* stream);
int fastlnl_mixture_posterior(const fastlnl::PosteriorArgs* args, void* stream);
int fastlnl_select(const fastlnl::SelectArgs* args, void* stream);
int fastlnl_two_view_loss(const fastlnl::TwoViewArgs* args, void* stream);
const char* fastlnl_error_text(int code);
}
