// What the tests call, besides the launchers.
#include "cuda_emulator.h"

extern "C" {

// Kernels may touch these bytes; the granule is the size of an element, `allowed` 1 to read, 2 to write, 3 both.
void emulator_argument(const void* begin, int64_t bytes, int granule, int allowed) {
  emulator::declare(begin, size_t(bytes), granule, allowed, false);
}
void emulator_forget() {
  emulator::state.regions.clear();
  emulator::state.error.clear();
}
const char* emulator_error() { return emulator::state.error.c_str(); }
void emulator_shared_limit(int bytes) { emulator::state.shared_limit = bytes; }
void emulator_trust(int trusting) { emulator::state.trusting = trusting != 0; }
}
