// The threads of emulated blocks, and the launch. Part of emulator.cpp.
#pragma once

#include "watch.h"

namespace emulator {

void wait_at(Meeting& meeting, int expected, const char* operation) {
  if (meeting.arrived == 0) meeting.operation = operation;
  if (strcmp(meeting.operation, operation) != 0)
    return fail(std::string("lanes of a warp meet at ") + meeting.operation + " and " + operation);
  Fibre& me = inside.now->fibres[state.thread];
  me.turn = meeting.turn;
  if (++meeting.arrived == expected) {
    meeting.arrived = 0;
    ++meeting.turn;
    inside.progress = true;
    return;
  }
  me.waits_at = &meeting;
  if (_setjmp(me.here) == 0) back_to_scheduler();
  me.waits_at = nullptr;
}

Meeting& of_warp() { return inside.now->warps[state.thread / 32]; }

void block_barrier() {
  Block& block = *inside.now;
  wait_at(block.whole, int(state.block), "__syncthreads");
  block.barriers = block.whole.turn;
}

void warp_barrier() {
  Meeting& warp = of_warp();
  wait_at(warp, 32, "__syncwarp");
  inside.now->warp_barriers[state.thread / 32] = warp.turn;
}

// Of all threads of a cooperative grid.
void grid_barrier() {
  block_barrier();
  wait_at(inside.all, int(state.grid * state.block), "grid_barrier");
}

void run_fibre() {
  inside.call(inside.body);
  inside.now->fibres[state.thread].done = inside.progress = true;
  back_to_scheduler();
}

void resume(int thread) {
  Fibre& fibre = inside.now->fibres[thread];
  state.thread = thread;
  inside.in_fibre = true;
  if (_setjmp(inside.scheduler) != 0) {
    inside.in_fibre = false;
    return;
  }
  if (fibre.started) _longjmp(fibre.here, 1);
  fibre.started = true;
  getcontext(&fibre.start);
  fibre.start.uc_stack = {&inside.now->stacks[size_t(thread) * STACK], 0, STACK};
  fibre.start.uc_link = nullptr;
  makecontext(&fibre.start, run_fibre, 0);
  setcontext(&fibre.start);
}

void begin_block(Block& block, int64_t number) {
  for (unsigned thread = 0; thread < state.block; ++thread) {
    block.fibres[thread].started = block.fibres[thread].done = false;
    block.fibres[thread].waits_at = nullptr;
    block.warps[thread / 32] = {};
    block.warp_barriers[thread / 32] = 0;
  }
  block.whole = {};
  block.barriers = 0;
  block.number = number;
  block.serial = ++inside.block_serial;
  block.shared.clear();
}

// Runs the threads of the present block until all are done or wait; how many are left. `waits`: for what.
unsigned run_threads(const char*& waits) {
  for (bool moved = true;; moved = false) {
    inside.progress = false;
    unsigned left = 0;
    for (unsigned thread = 0; thread < state.block && inside.error.empty(); ++thread) {
      const Fibre& fibre = inside.now->fibres[thread];
      if (!fibre.done && (fibre.waits_at == nullptr || fibre.waits_at->turn != fibre.turn)) resume(int(thread));
      left += !fibre.done;
      if (!fibre.done && fibre.waits_at != nullptr) waits = fibre.waits_at->operation;
    }
    if (left == 0 || !inside.error.empty() || (!inside.progress && !moved)) return left;
  }
}

// Shared memory of the block that ran last goes, that of the next one comes.
void change_block(Block& next) {
  for (auto& [at, region] : inside.regions) {
    if (!region.shared) continue;
    char* const memory = reinterpret_cast<char*>(at);
    if (inside.now != nullptr) {
      Aside& aside = inside.now->shared[at];
      aside.bytes.assign(memory, memory + (region.end - at));
      aside.cells.swap(region.cells);
    }
    Aside& aside = next.shared[at];
    if (!aside.bytes.empty()) memcpy(memory, aside.bytes.data(), aside.bytes.size());
    region.cells.swap(aside.cells);
    region.cells.resize((region.end - at) / region.granule + 1);
  }
  inside.now = &next;
  state.block_number = next.number;
}

void run_together() {
  for (unsigned number = 0; number < state.grid; ++number) {
    if (inside.blocks.size() <= number) inside.blocks.emplace_back();
    begin_block(inside.blocks[number], number);
  }
  inside.launch_begin = inside.blocks[0].serial;
  inside.now = nullptr;
  for (unsigned left = 1, before = 0; left > 0 && inside.error.empty(); before = left) {
    const int turn = inside.all.turn;
    const char* waits = "";
    left = 0;
    for (unsigned number = 0; number < state.grid && inside.error.empty(); ++number) {
      change_block(inside.blocks[number]);
      left += run_threads(waits);
    }
    if (left > 0 && left == before && turn == inside.all.turn)
      return fail(std::string(waits) + " is not reached by all threads: " + std::to_string(left) + " wait");
  }
}

void run_in_turn() {
  if (inside.blocks.empty()) inside.blocks.emplace_back();
  inside.now = &inside.blocks[0];
  inside.launch_begin = inside.block_serial + 1;
  for (unsigned number = 0; number < state.grid && inside.error.empty(); ++number) {
    begin_block(*inside.now, number);
    state.block_number = number;
    const char* waits = "";
    const unsigned left = run_threads(waits);
    if (left > 0 && inside.error.empty())
      return fail(std::string(waits) + " is not reached by all threads: " + std::to_string(left) + " wait");
  }
}

void launch_body(unsigned grid, unsigned block, size_t shared, bool together, void (*call)(const void*),
                 const void* body) {
  if (!inside.error.empty()) return;
  if (block == 0 || block > MAX_THREADS || block % 32 != 0 || grid == 0) return fail("a grid that cannot be launched");
  inside.call = call, inside.body = body;
  inside.dynamic.resize(shared / sizeof(uint4) + 1);
  if (shared > 0) declare(inside.dynamic.data(), shared, 2, READ | WRITE, true);
  state.grid = grid, state.block = block;
  inside.all = {};
  if (together)
    run_together();
  else
    run_in_turn();
  state.grid = 0;
  inside.now = nullptr;
  inside.last = nullptr;
  std::erase_if(inside.regions, [](const auto& region) { return region.second.shared; });
}

}  // namespace emulator
