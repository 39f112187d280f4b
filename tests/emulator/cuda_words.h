// The words of CUDA that kernels use, for the emulator.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#define threadIdx (Dimensions{unsigned(::emulator::state.thread)})
#define blockIdx (Dimensions{unsigned(::emulator::state.block_number)})
#define blockDim (Dimensions{::emulator::state.block})
#define gridDim (Dimensions{::emulator::state.grid})

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp() { emulator::warp_barrier(); }
using emulator::grid_barrier;

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  const int lane = emulator::state.thread % 32;
  T result;
  memcpy(&result, &emulator::exchange(mask, value, "__shfl_xor_sync")[lane ^ distance], sizeof(T));
  return result;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
  T result;
  memcpy(&result, &emulator::exchange(mask, value, "__shfl_sync")[from % 32], sizeof(T));
  return result;
}

inline unsigned __ballot_sync(unsigned mask, bool condition) {
  const uint64_t* brought = emulator::exchange(mask, uint64_t(condition), "__ballot_sync");
  unsigned lanes = 0;
  for (int lane = 0; lane < 32; ++lane) lanes |= unsigned(brought[lane]) << lane;
  return lanes;
}

inline int __ffs(int bits) { return bits == 0 ? 0 : 1 + std::countr_zero(unsigned(bits)); }
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  const uint64_t* brought = emulator::exchange(mask, uint64_t(value), "__reduce_add_sync");
  unsigned sum = 0;
  for (int lane = 0; lane < 32; ++lane) sum += unsigned(brought[lane]);
  return sum;
}

inline bool __any_sync(unsigned mask, bool condition) { return __ballot_sync(mask, condition) != 0; }

template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  uint64_t mine = 0;
  memcpy(&mine, &value, sizeof(T));
  const uint64_t* brought = emulator::exchange(mask, mine, "__match_any_sync");
  unsigned lanes = 0;
  for (int lane = 0; lane < 32; ++lane) lanes |= unsigned(brought[lane] == mine) << lane;
  return lanes;
}

template <class T>
T atomicCAS(T* address, T expected, T value) {
  const T before = *address;
  if (before == expected) *address = value;
  return before;
}

template <class T>
T atomicAdd(T* address, T value) {
  return std::exchange(*address, T(*address + value));
}
template <class T>
T atomicMin(T* address, T value) {
  return std::exchange(*address, std::min(*address, value));
}
template <class T>
T atomicMax(T* address, T value) {
  return std::exchange(*address, std::max(*address, value));
}
template <class T>
T atomicOr(T* address, T value) {
  return std::exchange(*address, T(*address | value));
}

inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }

// Never one operation together with a neighbour. The compiler here has no fused multiply-add to make of them anyway.
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __dadd_rn(double x, double y) { return x + y; }

using __half = _Float16;
inline __half __ushort_as_half(uint16_t bits) { return std::bit_cast<__half>(bits); }
inline uint16_t __half_as_ushort(__half x) { return std::bit_cast<uint16_t>(x); }
inline float __half2float(__half x) { return float(x); }
inline __half __float2half_rn(float x) { return __half(x); }

namespace emulator {

// A format of 16 bits that is either of two, chosen when a kernel is launched: one kernel to compile instead of two.
template <class First, class Second>
struct Either {
  using Bits = uint16_t;
  static inline bool second = false;
  static float value(Bits bits) { return second ? Second::value(bits) : First::value(bits); }
  static Bits bits(float x) { return second ? Second::bits(x) : First::bits(x); }
};
template <class First, class Second>
Either<First, Second> either(bool second) {
  Either<First, Second>::second = second;
  return {};
}

}  // namespace emulator

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrMultiProcessorCount };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? emulator::state.processors : emulator::state.shared_limit;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int) {
  return cudaSuccess;
}
