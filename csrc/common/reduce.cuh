// Deterministic reductions over a thread block: warp shuffles, then the warps' results in order. No atomics, so the
// same launch gives the same bits. Every thread of the block must call; blockDim.x is a multiple of 32, at most 1024.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace chaos_ext {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// A value and where it was found.
template <typename T>
struct Indexed {
  T value;
  int64_t index;
};

template <typename T>
__device__ inline T shuffle_down(T value, int offset) {
  return __shfl_down_sync(kFullWarp, value, offset);
}

template <typename T>
__device__ inline Indexed<T> shuffle_down(Indexed<T> v, int offset) {
  const long long index = __shfl_down_sync(kFullWarp, static_cast<long long>(v.index), offset);
  return {__shfl_down_sync(kFullWarp, v.value, offset), static_cast<int64_t>(index)};
}

struct Sum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

// The larger value; of equal values the one with the smaller index.
struct FirstMax {
  template <typename T>
  __device__ Indexed<T> operator()(Indexed<T> a, Indexed<T> b) const {
    const bool second = b.value > a.value || (b.value == a.value && b.index < a.index);
    return second ? b : a;
  }
};

// op over all threads of the block; every thread gets the result.
template <typename T, typename Op>
__device__ inline T block_reduce(T value, Op op) {
  __shared__ T warps[kWarpSize];
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) value = op(value, shuffle_down(value, offset));
  if (threadIdx.x % kWarpSize == 0) warps[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned w = 1; w < blockDim.x / kWarpSize; ++w) warps[0] = op(warps[0], warps[w]);
  }
  __syncthreads();
  const T result = warps[0];
  __syncthreads();  // before the next call writes warps
  return result;
}

// total[0] = scale sum_b partial[b]: the second stage of a sum over blocks. One block.
template <typename T>
__global__ void sum_partials_kernel(const double* partial,  // [blocks]
                                    int64_t blocks, double scale, T* total) {
  double sum = 0.0;
  for (int64_t b = threadIdx.x; b < blocks; b += blockDim.x) sum += partial[b];
  sum = block_reduce(sum, Sum{});
  if (threadIdx.x == 0) *total = static_cast<T>(scale * sum);
}

}  // namespace chaos_ext
