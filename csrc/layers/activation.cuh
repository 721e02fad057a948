// activation on the GPU. Formulas: activation_math.h. One thread per element, grid stride; bound by memory.
#pragma once

#include <cuda_runtime.h>

#include "activation_math.h"

namespace chaos_ext {

template <Activation kind, typename T>
__global__ void activation_kernel(const T* z,  // [n]
                                  int64_t n, T alpha, T beta,
                                  T* a,     // [n]
                                  T* d1,    // [n]
                                  T* d2) {  // [n], not written for piecewise-linear kinds
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) {
    const ActivationValues<T> v = activation_values<kind>(z[i], alpha, beta);
    a[i] = v.a;
    d1[i] = v.d1;
    if constexpr (!is_piecewise_linear(kind)) d2[i] = v.d2;
  }
}

}  // namespace chaos_ext
