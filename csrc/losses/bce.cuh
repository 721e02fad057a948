// bce_with_logits on the GPU. Formulas: bce.h. One thread per element, blocks of fixed size; each block leaves the sum
// of its losses, which are added in a second, fixed-order pass.
#pragma once

#include <cuda_runtime.h>

#include "../common/reduce.cuh"
#include "bce_math.h"

namespace chaos_ext {

template <typename T>
__global__ void bce_kernel(const T* z,   // [n]
                           const T* y,   // [n]
                           const T* w,   // [n] or null for ones
                           const T* pw,  // [n] or null for ones
                           T scale, int64_t n,
                           T* delta,           // [n]
                           T* curvature,       // [n]
                           double* partial) {  // [gridDim.x]
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  double loss = 0.0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) {
    const T wi = w == nullptr ? T(1) : w[i], pwi = pw == nullptr ? T(1) : pw[i];
    const BceValues<T> v = bce_values(z[i], y[i], wi, pwi, scale);
    loss += v.loss;
    delta[i] = v.delta;
    curvature[i] = v.curvature;
  }
  loss = block_reduce(loss, Sum{});
  if (threadIdx.x == 0) partial[blockIdx.x] = loss;
}

}  // namespace chaos_ext
