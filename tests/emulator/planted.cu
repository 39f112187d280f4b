// Kernels with one fault each, which the emulator must find, and their faultless twins.
#include "common.cuh"

namespace {

using namespace fastlnl;

enum Fault {
  NONE, RACE, UNWRITTEN, OFF_BY_ONE, LATE_BARRIER, TWO_WRITERS, MISALIGNED, READ_OUTPUT, LANES_APART, GLOBAL_RACE
};
enum GridFault { NO_MEETING = 1, ONE_STAYS_AWAY, ONE_PLACE };

// Every thread writes its number, and reads those of its neighbours.
__global__ void neighbours_kernel(const float* x, float* y, float* scratch, int fault) {
  FASTLNL_SHARED(float, row, 64);
  const int i = int(threadIdx.x);
  if (fault != UNWRITTEN) row.set(i, 0);
  __syncthreads();
  if (fault != UNWRITTEN || i != 7) row.set(i, load(x + i + (fault == OFF_BY_ONE)));
  if (fault != RACE) __syncthreads();
  if (fault == LATE_BARRIER && i < 40) __syncthreads();
  if (fault == LANES_APART && i % 2 == 0) __syncwarp();
  const float sum = __shfl_xor_sync(WARP, row.get((i + 1) % 64), 1);
  if (fault == GLOBAL_RACE) {
    store(scratch + i, sum);
    store(y + i, load(scratch + (i + 32) % 64));
  } else {
    store(y + i, sum);
  }
  if (fault == TWO_WRITERS && i == 0) store(y + 1, sum);
  if (fault == MISALIGNED) load(reinterpret_cast<const Words<16>*>(x + 1));
  if (fault == READ_OUTPUT) load(y + i);
}

// Blocks that meet: each writes two numbers, all read those of the next block. Each has shared memory of its own.
__global__ void meeting_kernel(float* parts, float* y, int fault) {
  FASTLNL_SHARED(float, own, 32);
  const int block = int(blockIdx.x), blocks = int(gridDim.x), i = int(threadIdx.x);
  for (int round = 0; round < 2; ++round) {
    float* const place = parts + (fault == ONE_PLACE ? 0 : round * blocks);
    own.set(i, float(10 * block + round));
    if (i == 0) store(place + block, own.get(0));
    if (fault == ONE_STAYS_AWAY && block == 0) return;
    if (fault != NO_MEETING) grid_barrier();
    store(y + (round * blocks + block) * 32 + i, load(place + (block + 1) % blocks) + own.get(i));
  }
}

// Random words of the counter (index, 0, 0, 0), and the lanes that hold the same value.
__global__ void words_kernel(const int64_t* values, uint32_t* words, uint32_t* lanes) {
  const int i = int(threadIdx.x);
  const Philox drawn = philox({uint32_t(i), 1, 2, 3}, 4, 5);
  for (int k = 0; k < 4; ++k) store(words + 4 * i + k, drawn.word[k]);
  store(lanes + i, __match_any_sync(WARP, load(values + i)));
}

}  // namespace

extern "C" void planted_neighbours(const float* x, float* y, float* scratch, int fault, int blocks) {
  FASTLNL_LAUNCH(neighbours_kernel, blocks, 64, 0, nullptr, x, y, scratch, fault);
}
extern "C" void planted_meeting(float* parts, float* y, int fault, int blocks) {
  FASTLNL_LAUNCH_TOGETHER(meeting_kernel, blocks, 32, 0, nullptr, parts, y, fault);
}
extern "C" void planted_words(const int64_t* values, uint32_t* words, uint32_t* lanes) {
  FASTLNL_LAUNCH(words_kernel, 1, 32, 0, nullptr, values, words, lanes);
}
