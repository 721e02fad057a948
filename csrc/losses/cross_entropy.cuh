// cross_entropy, cross_entropy_labels and cross_entropy_tangent on the GPU. Formulas: cross_entropy.h. One block per
// row n, threads over classes; the rows' losses are added in a second, fixed-order pass.
#pragma once

#include <cuda_runtime.h>

#include "../common/reduce.cuh"
#include "cross_entropy_math.h"

namespace chaos_ext {

// The largest of x(0), .., x(classes - 1) and where it is, for every thread of the block.
template <typename T, typename X>
__device__ inline Indexed<T> row_argmax(const X& x, int64_t classes) {
  Indexed<T> best{x(0), 0};
  for (int64_t c = threadIdx.x; c < classes; c += blockDim.x) best = FirstMax{}(best, Indexed<T>{x(c), c});
  return block_reduce(best, FirstMax{});
}

template <typename T, typename Targets>
__device__ inline CrossEntropyRow<T> reduce_row(const T* z, const Targets& t, int64_t n, int64_t classes) {
  const Indexed<T> top = row_argmax<T>([&](int64_t c) { return z[c]; }, classes);
  const Indexed<T> heavy = row_argmax<T>([&](int64_t c) { return t(n, c); }, classes);
  T exp_others = T(0), t_others = T(0);
  for (int64_t c = threadIdx.x; c < classes; c += blockDim.x) {
    if (c != top.index) exp_others += ::exp(z[c] - top.value);
    if (c != heavy.index) t_others += t(n, c);
  }
  exp_others = block_reduce(exp_others, Sum{});
  t_others = block_reduce(t_others, Sum{});
  return {top.value, top.index, exp_others, heavy.value, heavy.index, t_others};
}

template <typename T, typename Targets>
__device__ inline void cross_entropy_rows(const T* z,  // [N, C]
                                          const Targets& t, int64_t rows, int64_t classes,
                                          T* delta,            // [N, C]
                                          T* p,                // [N, C]
                                          double* row_loss) {  // [N]
  for (int64_t n = blockIdx.x; n < rows; n += gridDim.x) {
    const int64_t at = n * classes;
    const CrossEntropyRow<T> row = reduce_row(z + at, t, n, classes);
    double loss = 0.0;
    for (int64_t c = threadIdx.x; c < classes; c += blockDim.x) {
      const T pc = cross_entropy_p(row, z[at + c]);
      p[at + c] = pc;
      delta[at + c] = cross_entropy_delta(row, c, pc, t(n, c));
      loss += cross_entropy_loss(row, z[at + c], t(n, c));
    }
    loss = block_reduce(loss, Sum{});
    if (threadIdx.x == 0) row_loss[n] = loss;
  }
}

template <typename T>
__global__ void cross_entropy_kernel(const T* z,  // [N, C]
                                     const T* t,  // [N, C]
                                     int64_t rows, int64_t classes,
                                     T* delta,            // [N, C]
                                     T* p,                // [N, C]
                                     double* row_loss) {  // [N]
  cross_entropy_rows(z, DenseTargets<T>{t, classes}, rows, classes, delta, p, row_loss);
}

template <typename T>
__global__ void cross_entropy_labels_kernel(const T* z,        // [N, C]
                                            const int64_t* y,  // [N]
                                            T own, T others, int64_t rows, int64_t classes,
                                            T* delta,            // [N, C]
                                            T* p,                // [N, C]
                                            double* row_loss) {  // [N]
  cross_entropy_rows(z, LabelTargets<T>{y, own, others}, rows, classes, delta, p, row_loss);
}

// One thread per (n, k): neighbouring threads read neighbouring columns, and the few classes are looped over.
template <typename T>
__global__ void cross_entropy_tangent_kernel(const T* p,   // [N, C]
                                             const T* s,   // [N]
                                             const T* dz,  // [N, C, k]
                                             int64_t columns, int64_t rows, int64_t classes,
                                             T* out) {  // [N, C, k]
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * columns; i += step) {
    const int64_t n = i / columns, at = n * classes * columns + i % columns;
    const T *pn = p + n * classes, *d = dz + at;
    const T base = d[most_probable(pn, classes) * columns];
    T mean = T(0);
    for (int64_t c = 0; c < classes; ++c) softmax_mean(pn[c], d[c * columns], base, mean);
    for (int64_t c = 0; c < classes; ++c) {
      softmax_tangent(s[n], pn[c], d[c * columns], base, mean, out[at + c * columns]);
    }
  }
}

}  // namespace chaos_ext
