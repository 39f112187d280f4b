// The emulator itself; compiled once, with optimisation, beside the kernels.
#include "fibres.h"

namespace emulator {

Here state;

void fail(const char* what) { fail(std::string(what)); }

}  // namespace emulator

// What the tests call, besides the launchers.
extern "C" {

// Kernels may touch these bytes; the granule is the size of an element, `allowed` 1 to read, 2 to write, 3 both.
void emulator_argument(const void* begin, int64_t bytes, int granule, int allowed) {
  emulator::declare(begin, size_t(bytes), granule, allowed, false);
}
void emulator_forget() {
  emulator::inside.regions.clear();
  emulator::inside.error.clear();
  emulator::inside.last = nullptr;
}
const char* emulator_error() { return emulator::inside.error.c_str(); }
void emulator_shared_limit(int bytes) { emulator::state.shared_limit = bytes; }
void emulator_processors(int count) { emulator::state.processors = count; }
void emulator_fault(int number) { emulator::state.fault = number; }
void emulator_trust(int trusting) { emulator::inside.trusting = trusting != 0; }
}
