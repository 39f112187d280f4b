// How likely each value is to belong to the lower component, a read and a write a value: fastlnl/ops/mixture_posterior.
#include "mixture.cuh"

namespace fastlnl {

constexpr int POSTERIOR_THREADS = 256, PER_THREAD = 4;

template <bool BETA>
FASTLNL_DEVICE float log_odds_of(const PosteriorArgs& args, float x, int64_t g) {
  if (g < 0 || g >= args.groups || !(fabsf(x) < INFINITE)) return -float(CERTAIN);
  double q[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) q[i] = load(args.odds + 8 * g + i);
  const double v = held(x, q[BETA ? 3 : 5], q[BETA ? 4 : 6]), low = q[5], high = q[6], scale = q[7];
  double odds;
  if constexpr (BETA)
    odds = q[0] + q[1] * log(inner((v - low) * scale)) + q[2] * log(inner((high - v) * scale));
  else
    odds = q[0] + q[2] * (v - q[1]) * (v - q[1]) - q[4] * (v - q[3]) * (v - q[3]);
  return float(held(odds, -CERTAIN, CERTAIN));
}

template <bool BETA>
__global__ void __launch_bounds__(POSTERIOR_THREADS) mixture_posterior_kernel(const PosteriorArgs args) {
  const int64_t begin = int64_t(blockIdx.x) * POSTERIOR_THREADS * PER_THREAD;
  const int here = int(std::min<int64_t>(args.n - begin, POSTERIOR_THREADS * PER_THREAD));
  const Columns mine{int(threadIdx.x) * PER_THREAD, 1};
  uint32_t bits[PER_THREAD], found[PER_THREAD];
  load_slot(reinterpret_cast<const uint32_t*>(args.x) + begin, mine, here, 0u, bits);
#pragma unroll
  for (int i = 0; i < PER_THREAD; ++i) {
    const int64_t g = mine.at(i) >= here ? -1 : args.group == nullptr ? 0 : load(args.group + begin + mine.at(i));
    const float odds = log_odds_of<BETA>(args, __uint_as_float(bits[i]), g), e = expf(-fabsf(odds));
    found[i] = __float_as_uint(args.log_odds ? odds : (odds >= 0 ? 1 : e) / (1 + e));
  }
  store_slot(reinterpret_cast<uint32_t*>(args.posterior) + begin, mine, here, found);
}

}  // namespace fastlnl

int fastlnl_mixture_posterior(const fastlnl::PosteriorArgs* args, void* stream) {
  using namespace fastlnl;
  if (args->n == 0) return 0;
  const int64_t blocks = (args->n + POSTERIOR_THREADS * PER_THREAD - 1) / (POSTERIOR_THREADS * PER_THREAD);
  if (args->n < 0 || args->groups < 1 || blocks > 0x7fffffff) return int(cudaErrorInvalidValue);
  const auto kernel = args->beta ? mixture_posterior_kernel<true> : mixture_posterior_kernel<false>;
  FASTLNL_LAUNCH(kernel, blocks, POSTERIOR_THREADS, 0, stream, *args);
  return int(cudaGetLastError());
}
