// Loss, gradient, label memory and statistics of each row in one pass over the logits: fastlnl/ops/row_loss.
#include "rows.cuh"

int fastlnl_row_loss(const fastlnl::RowArgs* args, void* stream) {
  using namespace fastlnl;
  if (args->table != nullptr) return launch_format<TABLE>(*args, stream);
  if (args->target != nullptr) return launch_format<DENSE>(*args, stream);
  return launch_format<NO_TARGET>(*args, stream);
}

const char* fastlnl_error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
