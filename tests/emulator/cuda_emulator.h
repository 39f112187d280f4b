// Runs CUDA kernels on the CPU, one block after another, and watches them. For tests only; common.cuh includes it in
// place of the CUDA headers when FASTLNL_EMULATOR is defined.
//
// The threads of a block are fibres. Each runs until it has to wait for others (a barrier, a warp operation), so a
// block is as deterministic as a single thread. The blocks of a cooperative launch are there at once: one runs until
// its threads wait for the grid, then its shared memory is put aside and the next one runs. Every access that goes
// through common.cuh is checked:
//   - it lies in an argument (`emulator_argument`) or in declared shared memory, aligned, and may be read or written;
//   - shared memory was written before it is read;
//   - two threads that meet at one address, one of them writing and not both by atomics, have a barrier in between
//     (threads of a warp: __syncwarp); threads of different blocks have only that of a cooperative grid;
//   - every thread reaches every barrier, and the lanes of a warp meet at the same operation.
// The first offence ends the launch; `emulator_error` tells it.
#pragma once

#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __shared__ static
#define FASTLNL_FORGET(x)
#define FASTLNL_SEES(access, address, bytes) ::emulator::accessed(::emulator::access, address, bytes)
#define FASTLNL_SHARED_ARRAY(address, bytes) ::emulator::declare_shared(address, bytes)
#define FASTLNL_DYNAMIC_SHARED(name) uint4* const name = ::emulator::dynamic_shared()
#define FASTLNL_LAUNCH(kernel, grid, block, shared, stream, ...) \
  ::emulator::launch(unsigned(grid), unsigned(block), shared, false, [&] { kernel(__VA_ARGS__); })
#define FASTLNL_LAUNCH_TOGETHER(kernel, grid, block, shared, stream, ...) \
  (::emulator::launch(unsigned(grid), unsigned(block), shared, true, [&] { kernel(__VA_ARGS__); }), 0)

struct uint2 {
  unsigned x, y;
};
struct float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct Dimensions {
  unsigned x = 1;
};

namespace emulator {

enum Access { READ = 1, WRITE = 2, ATOMIC = 3 };

// Where threads wait for each other. What they bring lies in the slots of the present turn.
struct Meeting {
  int turn = 0, arrived = 0;
  const char* operation = nullptr;
  uint64_t brought[2][32];
};

// What a kernel asks about; the rest is in emulator.cpp.
struct Here {
  int thread = 0;
  int64_t block_number = 0;
  unsigned grid = 0, block = 0;
  int shared_limit = 227 * 1024, processors = 1;
  int fault = 0;  // of those put into kernels (faults.py), the one that is switched on
};
extern Here state;

void fail(const char* what);
void accessed(Access access, const volatile void* address, size_t bytes);
void declare_shared(const void* begin, size_t bytes);
uint4* dynamic_shared();
Meeting& of_warp();
void wait_at(Meeting& meeting, int expected, const char* operation);
void block_barrier();
void warp_barrier();
void grid_barrier();
void launch_body(unsigned grid, unsigned block, size_t shared, bool together, void (*call)(const void*),
                 const void* body);

template <class Body>
void launch(unsigned grid, unsigned block, size_t shared, bool together, const Body& body) {
  launch_body(grid, block, shared, together, [](const void* of) { (*static_cast<const Body*>(of))(); }, &body);
}

// Brings a value to the warp's meeting and returns what all lanes brought.
template <class T>
const uint64_t* exchange(unsigned mask, T value, const char* operation) {
  static_assert(sizeof(T) <= 8);
  if (mask != 0xffffffffu) fail("warp operations of a part of the warp are not emulated");
  Meeting& warp = of_warp();
  uint64_t* brought = warp.brought[warp.turn % 2];
  memcpy(&brought[state.thread % 32], &value, sizeof(T));
  wait_at(warp, 32, operation);
  return brought;
}

}  // namespace emulator

#include "cuda_words.h"
