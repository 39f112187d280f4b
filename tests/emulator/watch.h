// What threads touch, and when they did. Part of emulator.cpp.
#pragma once

#include <csetjmp>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <ucontext.h>

#include "cuda_emulator.h"

namespace emulator {

// When and by whom a cell was last touched.
struct Stamp {
  int64_t block = -1;  // serial over all launches
  int thread = 0, barrier = 0, warp_barrier = 0, grid_barrier = 0;
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
struct Fibre {
  ucontext_t start;
  jmp_buf here;
  bool started = false, done = false;
  Meeting* waits_at = nullptr;
  int turn = 0;
};

constexpr int MAX_THREADS = 1024, STACK = 128 * 1024;

struct Aside {
  std::vector<char> bytes;
  std::vector<Cell> cells;
};
struct Block {
  int64_t number = 0, serial = 0;
  int barriers = 0, warp_barriers[MAX_THREADS / 32] = {};
  Fibre fibres[MAX_THREADS];
  Meeting whole, warps[MAX_THREADS / 32];
  std::unique_ptr<char[]> stacks{new char[size_t(MAX_THREADS) * STACK]};  // there where it is touched
  std::map<uintptr_t, Aside> shared;  // while another block runs
};

struct Inside {
  std::map<uintptr_t, Region> regions;  // by their begin
  std::string error;
  int64_t block_serial = 0, launch_begin = 0;
  std::deque<Block> blocks;
  Block* now = nullptr;
  Meeting all;  // threads of a cooperative grid
  std::vector<uint4> dynamic;
  void (*call)(const void*) = nullptr;  // of the kernel, with its arguments
  const void* body = nullptr;
  jmp_buf scheduler;
  bool progress = false, in_fibre = false;
  bool trusting = false;  // unchecked, for speed
  uintptr_t last_begin = 0;  // the region that was touched last
  Region* last = nullptr;
} inside;

void back_to_scheduler() { _longjmp(inside.scheduler, 1); }

void fail(const std::string& what) {
  const std::string block = std::to_string(state.block_number), thread = std::to_string(state.thread);
  if (inside.error.empty()) inside.error = what + " (block " + block + ", thread " + thread + ")";
  if (inside.in_fibre) back_to_scheduler();
}

bool in_order(const Region& region, const Stamp& before) {
  const Block& here = *inside.now;
  if (before.block < (region.shared ? here.serial : inside.launch_begin)) return true;  // long ago, or never
  if (before.block != here.serial) return before.grid_barrier < inside.all.turn;
  if (before.thread == state.thread || before.barrier < here.barriers) return true;
  return before.thread / 32 == state.thread / 32 && before.warp_barrier < here.warp_barriers[state.thread / 32];
}

void check_cell(Region& region, Cell& cell, Access access) {
  const Block& here = *inside.now;
  const Stamp now{here.serial, state.thread, here.barriers, here.warp_barriers[state.thread / 32], inside.all.turn,
                  access == ATOMIC};
  if (region.shared && (access & READ) && cell.written.block != here.serial)
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

void accessed(Access access, const volatile void* address, size_t bytes) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  if (at % bytes != 0) return fail("access that is not aligned to its " + std::to_string(bytes) + " bytes");
  if (inside.last == nullptr || at < inside.last_begin || at + bytes > inside.last->end) {
    auto found = inside.regions.upper_bound(at);
    if (found == inside.regions.begin() || at + bytes > (--found)->second.end)
      return fail("access outside of the arguments and of shared memory");
    inside.last_begin = found->first, inside.last = &found->second;
  }
  Region& region = *inside.last;
  if ((access & region.allowed) != access)
    return fail(access & WRITE ? "write to an argument that is only read" : "read of an output");
  if (inside.trusting) return;
  const size_t first = (at - inside.last_begin) / region.granule;
  for (size_t cell = first; cell * region.granule < at - inside.last_begin + bytes; ++cell)
    check_cell(region, region.cells[cell], access);
}

void declare(const void* begin, size_t bytes, int granule, int allowed, bool shared) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(begin);
  Region& region = inside.regions[at];
  if (region.end != at + bytes) region = {at + bytes, granule, allowed, shared, std::vector<Cell>(bytes / granule + 1)};
}

void declare_shared(const void* begin, size_t bytes) { declare(begin, bytes, 4, READ | WRITE, true); }

uint4* dynamic_shared() { return inside.dynamic.data(); }

}  // namespace emulator
