// What each row of logits says about its sample, in one reading pass: fastlnl/ops/row_stats.
#include "rows.cuh"

int fastlnl_row_stats(const fastlnl::RowArgs* args, void* stream) {
  return fastlnl::launch_format<fastlnl::STATS_ONLY>(*args, stream);
}
