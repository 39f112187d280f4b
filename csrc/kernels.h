// The launchers: plain pointers in, an error code out. They know nothing of torch, their callers nothing of threads.
#pragma once

#include <cstdint>

namespace fastlnl {

enum Type : int32_t { FLOAT32, BFLOAT16, FLOAT16, UINT8 };
enum Loss : int32_t { CROSS_ENTROPY, SOFT_CROSS_ENTROPY, ALR, ELR, GCE };

constexpr int64_t PADDING = -1;  // the id of a row that only fills up a batch: all its outputs are 0, no error

// What one pass over rows of logits reads and writes; absent tensors are null. See fastlnl/ops/row_loss/contract.py.
struct RowArgs {
  const void* logits;     // (batch, classes) of logits_type, rows row_stride elements apart
  const int64_t* label;   // (batch,)
  const int64_t* index;   // (batch,)
  const float* target;    // (batch, classes)
  void* table;            // (num_samples, classes) of table_type
  const int64_t* step;    // (), of a table that rounds at random
  const float* weight;    // (batch,)
  float* loss;            // (batch,); row_stats has none
  void* dlogits;          // (batch, classes) of logits_type
  float* stats;           // (5, batch): nll, p_label, confidence, margin, entropy
  int64_t* prediction;    // (batch,), with stats
  int64_t* errors;        // (4,): kind, position, id, value
  int64_t row_stride, batch, num_samples;
  int32_t classes, logits_type, table_type, loss_kind, one_hot;
  uint32_t seed;
  float use, keep, grad_scale, parameters[4];
};

}  // namespace fastlnl

extern "C" {

// 0, or the cudaError_t of the launch. `stream` is a cudaStream_t.
int fastlnl_row_loss(const fastlnl::RowArgs* args, void* stream);
int fastlnl_row_stats(const fastlnl::RowArgs* args, void* stream);
const char* fastlnl_error_text(int code);
}
