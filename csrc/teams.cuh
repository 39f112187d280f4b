// Threads that work together: a part of a warp, a block; and what they reduce together.
#pragma once

#include "common.cuh"

namespace fastlnl {

struct Larger {
  template <class T>
  FASTLNL_DEVICE T operator()(T x, T y) const { return x > y ? x : y; }
};
struct Smaller {
  template <class T>
  FASTLNL_DEVICE T operator()(T x, T y) const { return x < y ? x : y; }
  static constexpr double NOTHING = INFINITE;  // changes no double
};
struct Plus {
  template <class T>
  FASTLNL_DEVICE T operator()(T x, T y) const { return x + y; }
  static constexpr double NOTHING = 0;
};

template <int LANES, class T, int N, class Operation>
FASTLNL_DEVICE void butterfly(T (&v)[N], Operation operation) {
#pragma unroll
  for (int distance = LANES / 2; distance > 0; distance /= 2)
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] = operation(v[n], __shfl_xor_sync(WARP, v[n], distance));
}

// LANES threads of a warp that share a row, or with LANES = 0 the whole block.
template <int LANES>
struct Team {
  static FASTLNL_DEVICE int size() { return LANES > 0 ? LANES : int(blockDim.x); }
  static FASTLNL_DEVICE int lane() { return int(threadIdx.x) % size(); }
  static FASTLNL_DEVICE int number() { return int(threadIdx.x) / size(); }  // of the team in its block

  // Does it hold in any team of the warp? The threads of a warp go together, whatever teams they are in.
  static FASTLNL_DEVICE bool any(bool condition) { return LANES > 0 ? __any_sync(WARP, condition) : condition; }

  // Every lane gets the result, the same bits in each; memory written before is seen by the team after.
  template <class T, int N, class Operation>
  static FASTLNL_DEVICE void reduce(T (&v)[N], Operation operation) {
    if constexpr (LANES > 0) {
      butterfly<LANES>(v, operation);
      __syncwarp();
    } else {
      butterfly<32>(v, operation);
      FASTLNL_SHARED(T, scratch, 32 * N);
      const int warps = int(blockDim.x) / 32, warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
      if (lane == 0)
        for (int n = 0; n < N; ++n) scratch.set(n * 32 + warp, v[n]);
      __syncthreads();
#pragma unroll
      for (int n = 0; n < N; ++n) v[n] = scratch.get(n * 32 + lane % warps);  // warps is a power of two
      for (int distance = warps / 2; distance > 0; distance /= 2)
#pragma unroll
        for (int n = 0; n < N; ++n) v[n] = operation(v[n], __shfl_xor_sync(WARP, v[n], distance));
      __syncthreads();  // the scratch is free again
    }
  }

  template <class T, class Operation>
  static FASTLNL_DEVICE T reduce(T x, Operation operation) {
    T v[1] = {x};
    reduce(v, operation);
    return v[0];
  }
};

}  // namespace fastlnl
