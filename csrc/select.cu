// The best of each group by score, of equal scores the lower ids: fastlnl/ops/select.
//
// Few samples: each counts who is better, in one launch. Many: a sample's place is its (score, id) as one integer of
// 32 + log2(n) bits, higher for better; the last one selected is found digit by digit, two launches each: count the
// next digit of those still in question, walk down the counts.
#include "teams.cuh"

namespace fastlnl {

constexpr int RANK_THREADS = 128, RIVALS = 8;  // threads a sample, which share its rivals
constexpr int COUNT_THREADS = 512, COUNT_SAMPLES = 4 * COUNT_THREADS, NARROW_THREADS = 256;
constexpr int ONE_GROUP_BITS = 11, MANY_GROUPS_BITS = 8;

struct Sample {
  uint32_t key;  // higher for better
  int64_t group;
  bool live;  // can be selected at all
  float score;

  FASTLNL_DEVICE Sample(const SelectArgs& args, int64_t at) : key(0), group(-1), live(at < args.n), score(0) {
    if (!live) return;
    score = load(args.scores + at);
    group = args.group == nullptr ? 0 : load(args.group + at);
    const int magnitude = int(__float_as_uint(score) & 0x7fffffff), value = score < 0 ? -magnitude : magnitude;
    key = uint32_t(args.largest ? value : -value) ^ 0x80000000u;  // -0.0 is 0
    live = score == score && group >= 0 && group < args.groups;
  }

  FASTLNL_DEVICE int64_t place(int64_t at, int id_bits) const {
    return (int64_t(key) << id_bits) + ((int64_t(1) << id_bits) - 1 - at);
  }
};

// A sample is selected if fewer than the quota of its group are better.
__global__ void __launch_bounds__(RANK_THREADS) rank_kernel(const SelectArgs args) {
  using Lanes = Team<RIVALS>;
  const int64_t at = int64_t(blockIdx.x) * (RANK_THREADS / RIVALS) + Lanes::number();
  const Sample me(args, at);
  int counts[2] = {0, 0};  // who is better, who is in the group
#pragma unroll 4
  for (int64_t other = Lanes::lane(); other < args.n; other += RIVALS) {
    const Sample rival(args, other);
    const bool counted = rival.live && rival.group == me.group;
    counts[0] += counted && (rival.key > me.key || (rival.key == me.key && other < at));
    counts[1] += counted;
  }
  Lanes::reduce(counts, Plus{});
  if (Lanes::lane() > 0 || at >= args.n) return;
  const int64_t quota = me.live ? load(args.quota + me.group) : 0, taken = std::min<int64_t>(quota, counts[1]);
  store(args.mask + at, int8_t(me.live && counts[0] < taken));
  if (me.live && counts[0] + 1 == taken) store(args.cut + me.group, me.score);
}

__global__ void empty_kernel(const SelectArgs args, int digits) {
  for (int digit = int(threadIdx.x); digit < digits; digit += int(blockDim.x))
    store(args.count + int64_t(blockIdx.x) * digits + digit, 0);
  if (threadIdx.x == 0) store(args.prefix + blockIdx.x, int64_t(0));
}

FASTLNL_DEVICE void count_one(int32_t* cell, int more) {
  FASTLNL_SEES(ATOMIC, cell, sizeof(int32_t));
  atomicAdd(cell, more);
}

// How many of the samples that begin with their group's prefix have each next digit.
__global__ void __launch_bounds__(COUNT_THREADS) count_kernel(const SelectArgs args, int shift, int bits, int id_bits) {
  FASTLNL_SHARED(int, here, 1 << ONE_GROUP_BITS);
  const int digits = 1 << bits, thread = int(threadIdx.x);
  const bool alone = args.groups == 1;
  for (int digit = thread; alone && digit < digits; digit += COUNT_THREADS) here.set(digit, 0);
  __syncthreads();
  for (int64_t begin = int64_t(blockIdx.x) * COUNT_SAMPLES; begin < args.n; begin += int64_t(gridDim.x) * COUNT_SAMPLES)
#pragma unroll
    for (int i = 0; i < COUNT_SAMPLES; i += COUNT_THREADS) {
      const int64_t at = begin + i + thread;
      const Sample sample(args, at);
      if (!sample.live) continue;
      const int64_t place = sample.place(at, id_bits) >> shift;
      if (place >> bits != load(args.prefix + sample.group)) continue;
      const int digit = int(place & (digits - 1));
      if (alone)
        here.add(digit, 1);
      else
        count_one(args.count + sample.group * digits + digit, 1);
    }
  __syncthreads();
  for (int digit = thread; alone && digit < digits; digit += COUNT_THREADS)
    if (here.get(digit) > 0) count_one(args.count + digit, here.get(digit));
}

// A block a group: appends the digit at which the quota is reached to the prefix, and empties the counts. The first
// threads have the highest digits.
__global__ void __launch_bounds__(NARROW_THREADS) narrow_kernel(const SelectArgs args, int bits, bool first) {
  FASTLNL_SHARED(int64_t, sums, NARROW_THREADS);
  FASTLNL_SHARED(int64_t, found, 2);  // the digit, and how many are still to be selected with it
  const int64_t group = blockIdx.x;
  const int digits = 1 << bits, mine = digits / NARROW_THREADS, thread = int(threadIdx.x);
  int32_t* const count = args.count + group * digits;
  const int top = digits - 1 - thread * mine;
  int64_t sum = 0;
  for (int i = 0; i < mine; ++i) sum += load(count + top - i);
  const int64_t before = load(args.prefix + group), quota = load(args.quota + group);
  const int64_t remaining = first ? 0 : load(args.remaining + group);
  // Sums over all threads before, by doubling.
  int64_t running = sum;
  for (int distance = 1; distance < NARROW_THREADS; distance *= 2) {
    sums.set(thread, running);
    __syncthreads();
    if (thread >= distance) running += sums.get(thread - distance);
    __syncthreads();
  }
  sums.set(thread, running);
  if (thread < 2) found.set(thread, 0);
  __syncthreads();
  const int64_t total = sums.get(NARROW_THREADS - 1), left = first ? std::min(quota, total) : remaining;
  int64_t above = running - sum;
  for (int i = 0; i < mine; ++i) {
    const int64_t here = load(count + top - i);
    if (above < left && left <= above + here) {
      found.set(0, top - i);
      found.set(1, left - above);
    }
    above += here;
    store(count + top - i, 0);
  }
  __syncthreads();
  if (thread > 0) return;
  store(args.prefix + group, (before << bits) + found.get(0));
  store(args.remaining + group, found.get(1));
}

// Everybody down to the one whom his group selects last, who writes his score; nobody where nothing was left.
__global__ void __launch_bounds__(COUNT_THREADS) mark_kernel(const SelectArgs args, int id_bits) {
  const int64_t at = int64_t(blockIdx.x) * COUNT_THREADS + threadIdx.x;
  if (at >= args.n) return;
  const Sample sample(args, at);
  bool selected = false;
  if (sample.live && load(args.remaining + sample.group) > 0) {
    const int64_t place = sample.place(at, id_bits), last = load(args.prefix + sample.group);
    selected = place >= last;
    if (place == last) store(args.cut + sample.group, sample.score);
  }
  store(args.mask + at, int8_t(selected));
}

}  // namespace fastlnl

int fastlnl_select(const fastlnl::SelectArgs* args, void* stream) {
  using namespace fastlnl;
  const int64_t n = args->n;
  if (n == 0) return 0;
  if (n < 0 || n > 1 << 30 || args->groups < 1 || args->groups > 0x7fffffff) return int(cudaErrorInvalidValue);
  if (args->count == nullptr) {
    constexpr int SAMPLES = RANK_THREADS / RIVALS;
    FASTLNL_LAUNCH(rank_kernel, (n + SAMPLES - 1) / SAMPLES, RANK_THREADS, 0, stream, *args);
    return int(cudaGetLastError());
  }
  const int bits = args->groups == 1 ? ONE_GROUP_BITS : MANY_GROUPS_BITS;
  int id_bits = 1;
  while (int64_t(1) << id_bits < n) ++id_bits;
  const int top = (32 + id_bits - 1) / bits * bits;
  const int64_t most = 4 * device_has(cudaDevAttrMultiProcessorCount);
  const int64_t blocks = std::min<int64_t>((n + COUNT_SAMPLES - 1) / COUNT_SAMPLES, most);
  FASTLNL_LAUNCH(empty_kernel, args->groups, NARROW_THREADS, 0, stream, *args, 1 << bits);
  for (int shift = top; shift >= 0; shift -= bits) {
    FASTLNL_LAUNCH(count_kernel, blocks, COUNT_THREADS, 0, stream, *args, shift, bits, id_bits);
    FASTLNL_LAUNCH(narrow_kernel, args->groups, NARROW_THREADS, 0, stream, *args, bits, shift == top);
  }
  FASTLNL_LAUNCH(mark_kernel, (n + COUNT_THREADS - 1) / COUNT_THREADS, COUNT_THREADS, 0, stream, *args, id_bits);
  return int(cudaGetLastError());
}
