// projected_sgd_ on the GPU. Formulas: projected_sgd.h. One thread per parameter, grid stride; neighbours share the row
// of L (a broadcast) and read R coalesced.
#pragma once

#include <cuda_runtime.h>

#include "projected_sgd_math.h"

namespace chaos_ext {

template <typename T>
__global__ void projected_sgd_kernel(T* param,       // [O, I]
                                     const T* grad,  // [O, I]
                                     const T* L,     // [O, q]
                                     const T* R,     // [q, I]
                                     T* buf,         // [O, I] or null
                                     SgdOptions<T> options, int64_t O, int64_t q, int64_t I) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < O * I; at += stride) {
    const int64_t o = at / I, i = at % I;
    T product = T(0);
    for (int64_t r = 0; r < q; ++r) product += L[o * q + r] * R[r * I + i];
    sgd_step(options, grad[at] - product, param + at, buf == nullptr ? nullptr : buf + at);
  }
}

}  // namespace chaos_ext
