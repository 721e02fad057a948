// mse on the GPU. Formulas: mse.h. One thread per element, blocks of fixed size; each block leaves the sum of its
// squares, which are added in a second, fixed-order pass.
#pragma once

#include <cuda_runtime.h>

#include "../common/reduce.cuh"
#include "mse_math.h"

namespace chaos_ext {

template <typename T>
__global__ void mse_kernel(const T* z,  // [n]
                           const T* y,  // [n]
                           T scale, int64_t n,
                           T* delta,           // [n]
                           double* partial) {  // [gridDim.x]
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  double squares = 0.0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) {
    const MseValues<T> v = mse_values(z[i], y[i], scale);
    squares += v.square;
    delta[i] = v.delta;
  }
  squares = block_reduce(squares, Sum{});
  if (threadIdx.x == 0) partial[blockIdx.x] = squares;
}

}  // namespace chaos_ext
