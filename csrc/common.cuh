// What kernels are made of: memory, number formats, random words, the error word. Teams of threads: teams.cuh.
//
// Kernels reach memory only through `load`, `store` and `Shared`: the emulator (tests/emulator), which builds the same
// files for the CPU, sees every access there.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "geometry.h"
#include "kernels.h"

#ifdef FASTLNL_EMULATOR
#include "cuda_emulator.h"
#else
#include <cooperative_groups.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define FASTLNL_LAUNCH(kernel, grid, block, shared, stream, ...) \
  kernel<<<static_cast<unsigned>(grid), block, shared, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
// All blocks at once, which may meet at a grid_barrier; the value is an error code.
#define FASTLNL_LAUNCH_TOGETHER(kernel, grid, block, shared, stream, ...) \
  ::fastlnl::launch_together(kernel, unsigned(grid), block, shared, static_cast<cudaStream_t>(stream), __VA_ARGS__)
#define FASTLNL_SEES(access, address, bytes)
#define FASTLNL_SHARED_ARRAY(address, bytes)
#define FASTLNL_DYNAMIC_SHARED(name) extern __shared__ uint4 name[]
// The compiler may not know x any more: what follows from it is computed again instead of being kept in registers.
#define FASTLNL_FORGET(x) asm volatile("" : "+f"(x))
#endif

#define FASTLNL_DEVICE __device__ __forceinline__
#define FASTLNL_CALLED inline __device__ __noinline__
// Shared memory is declared as FASTLNL_SHARED(float, scratch, 32) and used as scratch.get(i), scratch.set(i, x).
#define FASTLNL_SHARED(T, name, count)                        \
  __shared__ T name##_memory[count];                          \
  FASTLNL_SHARED_ARRAY(name##_memory, sizeof(name##_memory)); \
  const ::fastlnl::Shared<T> name{name##_memory}

namespace fastlnl {

constexpr unsigned WARP = 0xffffffffu;
constexpr float INFINITE = std::numeric_limits<float>::infinity();

#ifndef FASTLNL_EMULATOR
FASTLNL_DEVICE void grid_barrier() { cooperative_groups::this_grid().sync(); }

template <class... Parameters>
int launch_together(void (*kernel)(Parameters...), unsigned grid, unsigned block, size_t shared, cudaStream_t stream,
                    std::type_identity_t<Parameters>... arguments) {
  void* addresses[] = {&arguments...};
  return int(cudaLaunchCooperativeKernel(kernel, grid, block, addresses, shared, stream));
}
#endif

// ---- memory

template <class T>
FASTLNL_DEVICE T load(const T* address) {
  FASTLNL_SEES(READ, address, sizeof(T));
  return *address;
}

template <class T>
FASTLNL_DEVICE void store(T* address, T value) {
  FASTLNL_SEES(WRITE, address, sizeof(T));
  *address = value;
}

template <class T>
struct Shared {
  T* memory;

  FASTLNL_DEVICE T get(int i) const { return load(memory + i); }
  FASTLNL_DEVICE void set(int i, T value) const { store(memory + i, value); }
  FASTLNL_DEVICE void smallest(int i, T value) const {
    FASTLNL_SEES(ATOMIC, memory + i, sizeof(T));
    atomicMin(memory + i, value);
  }
  FASTLNL_DEVICE void largest(int i, T value) const {
    FASTLNL_SEES(ATOMIC, memory + i, sizeof(T));
    atomicMax(memory + i, value);
  }
  FASTLNL_DEVICE void set_bits(int i, T bits) const {
    FASTLNL_SEES(ATOMIC, memory + i, sizeof(T));
    atomicOr(memory + i, bits);
  }
  FASTLNL_DEVICE void add(int i, T value) const {
    FASTLNL_SEES(ATOMIC, memory + i, sizeof(T));
    atomicAdd(memory + i, value);
  }
  // What was there before; `value` is now, if that was `expected`.
  FASTLNL_DEVICE T replace(int i, T expected, T value) const {
    FASTLNL_SEES(ATOMIC, memory + i, sizeof(T));
    return atomicCAS(memory + i, expected, value);
  }
};

// Integer sums in global memory: whoever comes first, the result is the same.
FASTLNL_DEVICE void add(int64_t* address, int64_t value) {
  FASTLNL_SEES(ATOMIC, address, sizeof(int64_t));
  atomicAdd(reinterpret_cast<unsigned long long*>(address), static_cast<unsigned long long>(value));
}

// BYTES that are read and written by one instruction.
template <int BYTES>
struct alignas(BYTES) Words {
  uint32_t word[BYTES / 4];
};

// N columns of a row: first, first + step, ...
struct Columns {
  int first, step;

  FASTLNL_DEVICE int at(int i) const { return first + i * step; }
};

// How N neighbours of type U move: by one instruction for each 16 bytes, or for all of them where that is less.
template <class U, int N>
struct Access {
  static constexpr int SIZE = int(sizeof(U)), BYTES = std::min(std::max(N * SIZE, 4), SLOT_BYTES), STEP = BYTES / SIZE;
  static_assert(N % STEP == 0 || N == 1);

  static FASTLNL_DEVICE bool together(const U* row, Columns columns, int i, int width) {
    const int column = columns.first + i;
    return N % STEP == 0 && columns.step == 1 && column >= 0 && column + STEP <= width &&
           reinterpret_cast<uintptr_t>(row + column) % BYTES == 0;
  }
};

// These columns of the row; those outside [0, width) are `pad`. Neighbours that are inside and aligned come together,
// others (the ends of a row, and all where columns are not neighbours) one by one.
template <class U, int N>
FASTLNL_DEVICE void load_slot(const U* row, Columns columns, int width, U pad, U (&v)[N]) {
  using A = Access<U, N>;
#pragma unroll
  for (int at = 0; at < N; at += A::STEP) {
    if (A::together(row, columns, at, width)) {
      const auto words = load(reinterpret_cast<const Words<A::BYTES>*>(row + columns.first + at));
#pragma unroll
      for (int i = 0; i < A::STEP && at + i < N; ++i) v[at + i] = U(words.word[i * A::SIZE / 4] >> i * A::SIZE % 4 * 8);
    } else {
#pragma unroll
      for (int i = at; i < at + A::STEP && i < N; ++i)
        v[i] = unsigned(columns.at(i)) < unsigned(width) ? load(row + columns.at(i)) : pad;
    }
  }
}

// The same the other way round; columns outside are left alone.
template <class U, int N>
FASTLNL_DEVICE void store_slot(U* row, Columns columns, int width, const U (&v)[N]) {
  using A = Access<U, N>;
#pragma unroll
  for (int at = 0; at < N; at += A::STEP) {
    if (A::together(row, columns, at, width)) {
      Words<A::BYTES> words{};
#pragma unroll
      for (int i = 0; i < A::STEP && at + i < N; ++i)
        words.word[i * A::SIZE / 4] |= uint32_t(v[at + i]) << i * A::SIZE % 4 * 8;
      store(reinterpret_cast<Words<A::BYTES>*>(row + columns.first + at), words);
    } else {
#pragma unroll
      for (int i = at; i < at + A::STEP && i < N; ++i)
        if (unsigned(columns.at(i)) < unsigned(width)) store(row + columns.at(i), v[i]);
    }
  }
}

constexpr int64_t DECLARED_BYTES = 8 * 1024, UNASKED_BYTES = 48 * 1024;  // what a kernel declares itself is less

inline int device_has(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}

// May each block of the kernel have so much dynamic shared memory here?
template <class Kernel>
bool may_share(Kernel kernel, int64_t bytes) {
  if (bytes + DECLARED_BYTES <= UNASKED_BYTES) return true;
  return bytes + DECLARED_BYTES <= device_has(cudaDevAttrMaxSharedMemoryPerBlockOptin) &&
         cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)) == cudaSuccess;
}

// ---- number formats: how memory holds them (Bits) and their value

struct Float {
  using Bits = uint32_t;
  static FASTLNL_DEVICE float value(Bits bits) { return __uint_as_float(bits); }
  static FASTLNL_DEVICE Bits bits(float x) { return __float_as_uint(x); }
};

struct BFloat {
  using Bits = uint16_t;
  static FASTLNL_DEVICE float value(Bits bits) { return __uint_as_float(uint32_t(bits) << 16); }
  static FASTLNL_DEVICE Bits bits(float x) {  // to the nearest, ties to even
    const uint32_t word = __float_as_uint(x);
    return Bits(x != x ? 0x7fff : (word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
};

struct Half {
  using Bits = uint16_t;
  static FASTLNL_DEVICE float value(Bits bits) { return __half2float(__ushort_as_half(bits)); }
  static FASTLNL_DEVICE Bits bits(float x) { return __half_as_ushort(__float2half_rn(x)); }
};

// call(format) with that of the logits. The emulator needs one format of 16 bits, which is either.
template <class Call>
int with_format(int type, Call call) {
#ifdef FASTLNL_EMULATOR
  if (type == BFLOAT16 || type == FLOAT16) return call(::emulator::either<BFloat, Half>(type == FLOAT16));
#endif
  switch (type) {
    case FLOAT32: return call(Float{});
#ifndef FASTLNL_EMULATOR
    case BFLOAT16: return call(BFloat{});
    case FLOAT16: return call(Half{});
#endif
    default: return int(cudaErrorInvalidValue);
  }
}

// The values of these columns; those outside [0, width) are `pad`.
template <class Format, int N>
FASTLNL_DEVICE void decode_slot(const void* row, Columns columns, int width, float pad, float (&v)[N]) {
  using Bits = typename Format::Bits;
  Bits bits[N];
  load_slot(static_cast<const Bits*>(row), columns, width, Format::bits(pad), bits);
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = Format::value(bits[i]);
}

// ---- random words

struct Philox {
  uint32_t word[4];
};

// Philox4x32 with 10 rounds, as in fastlnl/philox.py.
FASTLNL_DEVICE Philox philox(Philox counter, uint32_t key0, uint32_t key1) {
  uint32_t(&w)[4] = counter.word;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t(0xD2511F53u) * w[0], second = uint64_t(0xCD9E8D57u) * w[2];
    const uint32_t w0 = uint32_t(second >> 32) ^ w[1] ^ key0, w2 = uint32_t(first >> 32) ^ w[3] ^ key1;
    w[0] = w0, w[1] = uint32_t(second), w[2] = w2, w[3] = uint32_t(first);
    key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
  }
  return counter;
}

// ---- errors

enum ErrorKind : int64_t { BAD_LABEL = 1, BAD_ID = 2 };

// The first to come is recorded and stays, see `new_error_word` in fastlnl/ops/row_loss.
FASTLNL_DEVICE void report(int64_t* errors, ErrorKind kind, int64_t position, int64_t id, int64_t value) {
  FASTLNL_SEES(ATOMIC, errors, sizeof(int64_t));
  using Word = unsigned long long;
  if (atomicCAS(reinterpret_cast<Word*>(errors), Word(0), Word(kind)) != 0) return;
  store(errors + 1, position);
  store(errors + 2, id);
  store(errors + 3, value);
}

}  // namespace fastlnl
