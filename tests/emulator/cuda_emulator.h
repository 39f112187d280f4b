// Runs CUDA kernels on the CPU, one block after another, and watches them. For tests only; common.cuh includes it in
// place of the CUDA headers when FASTLNL_EMULATOR is defined.
//
// The threads of a block are fibres. Each runs until it has to wait for others (a barrier, a warp operation), so a
// block is as deterministic as a single thread. Every access that goes through common.cuh is checked:
//   - it lies in an argument (`emulator_argument`) or in declared shared memory, aligned, and may be read or written;
//   - shared memory was written before it is read;
//   - two threads that meet at one address, one of them writing and not both by atomics, have a barrier in between
//     (threads of a warp: __syncwarp); threads of different blocks never have one;
//   - every thread reaches every barrier, and the lanes of a warp meet at the same operation.
// The first offence ends the launch; `emulator_error` tells it.
#pragma once

#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <ucontext.h>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define FASTLNL_FORGET(x)
#define FASTLNL_SEES(access, address, bytes) ::emulator::accessed(::emulator::access, address, bytes)
#define FASTLNL_SHARED_ARRAY(address, bytes) ::emulator::declare_shared(address, bytes)
#define FASTLNL_DYNAMIC_SHARED(name) uint4* const name = ::emulator::dynamic_shared()
#define FASTLNL_LAUNCH(kernel, grid, block, shared, stream, ...) \
  ::emulator::launch(unsigned(grid), unsigned(block), shared, [&] { kernel(__VA_ARGS__); })

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct Dimensions {
  unsigned x = 1;
};

namespace emulator {

enum Access { READ = 1, WRITE = 2, ATOMIC = 3 };

// When and by whom a cell was last touched.
struct Stamp {
  int64_t block = -1;  // serial over all launches
  int thread = 0, barrier = 0, warp_barrier = 0;
  bool atomic = false;
};
struct Cell {
  Stamp written, read, read_by_another;
};
struct Region {
  uintptr_t end;
  int granule;  // bytes of a cell
  int allowed;  // READ | WRITE
  bool shared;
  std::vector<Cell> cells;
};

// Where threads wait for each other. What they bring lies in the slots of the present turn.
struct Meeting {
  int turn = 0, arrived = 0;
  const char* operation = nullptr;
  uint64_t brought[2][32];
};
struct Fibre {
  ucontext_t start;
  jmp_buf here;
  bool started = false, done = false;
  Meeting* waits_at = nullptr;
  int turn = 0;
};

constexpr int MAX_THREADS = 1024, STACK = 128 * 1024;

inline struct State {
  std::map<uintptr_t, Region> regions;  // by their begin
  std::string error;
  unsigned grid = 0, block = 0;
  int64_t block_number = 0, block_serial = 0, launch_begin = 0;
  int thread = 0, barriers = 0, warp_barriers[MAX_THREADS / 32] = {};
  Fibre fibres[MAX_THREADS];
  Meeting whole, warps[MAX_THREADS / 32];
  std::vector<char> stacks;
  std::vector<uint4> dynamic;
  std::function<void()> body;
  jmp_buf scheduler;
  bool progress = false, in_fibre = false;
  int shared_limit = 227 * 1024;
  bool trusting = false;  // unchecked, for speed
} state;

inline void back_to_scheduler() { _longjmp(state.scheduler, 1); }

inline void fail(const std::string& what) {
  const std::string block = std::to_string(state.block_number), thread = std::to_string(state.thread);
  if (state.error.empty()) state.error = what + " (block " + block + ", thread " + thread + ")";
  if (state.in_fibre) back_to_scheduler();
}

// ---- what threads touch

inline bool in_order(const Region& region, const Stamp& before) {
  if (before.block < (region.shared ? state.block_serial : state.launch_begin)) return true;  // long ago, or never
  if (before.block != state.block_serial) return false;
  if (before.thread == state.thread || before.barrier < state.barriers) return true;
  return before.thread / 32 == state.thread / 32 && before.warp_barrier < state.warp_barriers[state.thread / 32];
}

inline void check_cell(Region& region, Cell& cell, Access access) {
  const Stamp now{state.block_serial, state.thread, state.barriers, state.warp_barriers[state.thread / 32],
                  access == ATOMIC};
  if (region.shared && (access & READ) && cell.written.block != state.block_serial)
    return fail("read of shared memory that nobody wrote");
  const bool both_atomic = access == ATOMIC && cell.written.atomic;
  if (!both_atomic && !in_order(region, cell.written))
    return fail(std::string("race: ") + (access == READ ? "read" : "write") + " of what thread " +
                std::to_string(cell.written.thread) + " wrote without a barrier in between");
  if (access & WRITE) {
    for (const Stamp* read : {&cell.read, &cell.read_by_another})
      if (!in_order(region, *read))
        return fail("race: write to what thread " + std::to_string(read->thread) +
                    " read without a barrier in between");
    cell.written = now;
  } else if (cell.read.block != now.block || cell.read.thread != now.thread) {
    cell.read_by_another = cell.read;
    cell.read = now;
  } else {
    cell.read = now;
  }
}

inline void accessed(Access access, const volatile void* address, size_t bytes) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  if (at % bytes != 0) return fail("access that is not aligned to its " + std::to_string(bytes) + " bytes");
  auto found = state.regions.upper_bound(at);
  if (found == state.regions.begin() || at + bytes > (--found)->second.end)
    return fail("access outside of the arguments and of shared memory");
  Region& region = found->second;
  if ((access & region.allowed) != access)
    return fail(access & WRITE ? "write to an argument that is only read" : "read of an output");
  if (state.trusting) return;
  const size_t first = (at - found->first) / region.granule;
  for (size_t cell = first; cell * region.granule < at - found->first + bytes; ++cell)
    check_cell(region, region.cells[cell], access);
}

inline void declare(const void* begin, size_t bytes, int granule, int allowed, bool shared) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(begin);
  Region& region = state.regions[at];
  if (region.end != at + bytes) region = {at + bytes, granule, allowed, shared, std::vector<Cell>(bytes / granule + 1)};
}

inline void declare_shared(const void* begin, size_t bytes) { declare(begin, bytes, 4, READ | WRITE, true); }

inline uint4* dynamic_shared() { return state.dynamic.data(); }

// ---- fibres

inline void wait_at(Meeting& meeting, int expected, const char* operation) {
  if (meeting.arrived == 0) meeting.operation = operation;
  if (strcmp(meeting.operation, operation) != 0)
    return fail(std::string("lanes of a warp meet at ") + meeting.operation + " and " + operation);
  Fibre& me = state.fibres[state.thread];
  me.turn = meeting.turn;
  if (++meeting.arrived == expected) {
    meeting.arrived = 0;
    ++meeting.turn;
    state.progress = true;
    return;
  }
  me.waits_at = &meeting;
  if (_setjmp(me.here) == 0) back_to_scheduler();
  me.waits_at = nullptr;
}

// Brings a value to the warp's meeting and returns what all lanes brought.
template <class T>
const uint64_t* exchange(unsigned mask, T value, const char* operation) {
  static_assert(sizeof(T) <= 8);
  if (mask != 0xffffffffu) fail("warp operations of a part of the warp are not emulated");
  Meeting& warp = state.warps[state.thread / 32];
  uint64_t* brought = warp.brought[warp.turn % 2];
  memcpy(&brought[state.thread % 32], &value, sizeof(T));
  wait_at(warp, 32, operation);
  return brought;
}

inline void run_fibre() {
  state.body();
  state.fibres[state.thread].done = state.progress = true;
  back_to_scheduler();
}

inline void resume(int thread) {
  Fibre& fibre = state.fibres[thread];
  state.thread = thread;
  state.in_fibre = true;
  if (_setjmp(state.scheduler) != 0) {
    state.in_fibre = false;
    return;
  }
  if (fibre.started) _longjmp(fibre.here, 1);
  fibre.started = true;
  getcontext(&fibre.start);
  fibre.start.uc_stack = {&state.stacks[size_t(thread) * STACK], 0, STACK};
  fibre.start.uc_link = nullptr;
  makecontext(&fibre.start, run_fibre, 0);
  setcontext(&fibre.start);
}

inline void run_block() {
  for (unsigned thread = 0; thread < state.block; ++thread) {
    state.fibres[thread].started = state.fibres[thread].done = false;
    state.fibres[thread].waits_at = nullptr;
    state.warps[thread / 32] = {};
    state.warp_barriers[thread / 32] = 0;
  }
  state.whole = {};
  state.barriers = 0;
  ++state.block_serial;
  for (unsigned left = state.block; left > 0;) {
    state.progress = false;
    left = 0;
    const char* waits = "";
    for (unsigned thread = 0; thread < state.block && state.error.empty(); ++thread) {
      const Fibre& fibre = state.fibres[thread];
      if (!fibre.done && (fibre.waits_at == nullptr || fibre.waits_at->turn != fibre.turn)) resume(int(thread));
      left += !fibre.done;
      if (!fibre.done && fibre.waits_at != nullptr) waits = fibre.waits_at->operation;
    }
    if (!state.error.empty()) return;
    if (left > 0 && !state.progress)
      return fail(std::string(waits) + " is not reached by all threads: " + std::to_string(left) + " wait");
  }
}

inline void launch(unsigned grid, unsigned block, size_t shared, std::function<void()> body) {
  if (!state.error.empty()) return;
  if (block == 0 || block > MAX_THREADS || block % 32 != 0 || grid == 0) return fail("a grid that cannot be launched");
  state.body = std::move(body);
  state.stacks.resize(size_t(block) * STACK);
  state.dynamic.resize(shared / sizeof(uint4) + 1);
  if (shared > 0) declare(state.dynamic.data(), shared, 2, READ | WRITE, true);
  state.grid = grid, state.block = block;
  state.launch_begin = state.block_serial + 1;
  for (state.block_number = 0; state.block_number < int64_t(grid) && state.error.empty(); ++state.block_number)
    run_block();
  state.grid = 0;
  std::erase_if(state.regions, [](const auto& region) { return region.second.shared; });
}

}  // namespace emulator

#include "cuda_words.h"
