// norm_tangent_ and norm_tangent_backward_ on the GPU. Formulas: norm_tangent_math.h. A block of kNormColumns x
// kNormRows threads takes a group and kNormColumns columns at a time: neighbours along x read neighbouring columns,
// rows of threads share the entries. Sums go through shared memory and are added in the order of the rows; no atomics.
#pragma once

#include <cuda_runtime.h>

#include "norm_tangent_math.h"

namespace chaos_ext {

constexpr int kNormColumns = 32;
constexpr int kNormRows = 8;

// Adds over the rows of threads; every thread gets the sum of its column. All threads of the block must call.
template <typename T>
__device__ inline T sum_over_rows(T value) {
  __shared__ T parts[kNormRows][kNormColumns];
  parts[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  T sum = parts[0][threadIdx.x];
  for (int row = 1; row < kNormRows; ++row) sum += parts[row][threadIdx.x];
  __syncthreads();  // before the next call writes parts
  return sum;
}

// Entry i of group g: segments of M one after another.
template <typename T>
__device__ inline int64_t norm_entry(const NormProblem<T>& q, int64_t g, int64_t i) {
  return q.s.segment(i / q.s.M, g) + i % q.s.M;
}

// Means of delta and xh delta over the group: the same in every column.
template <typename T>
__device__ inline NormGroup<T> norm_group_on_device(const NormProblem<T>& q, int64_t g) {
  double mean = 0, mean_h = 0;
  if (q.delta != nullptr) {
    const int64_t threads = kNormColumns * kNormRows, first = threadIdx.y * kNormColumns + threadIdx.x;
    for (int64_t i = first; i < q.s.count(); i += threads) {
      const int64_t at = norm_entry(q, g, i);
      mean += q.delta[at];
      mean_h += static_cast<double>(q.xh[at]) * q.delta[at];
    }
    __shared__ double parts[2][kNormColumns];
    mean = sum_over_rows(mean), mean_h = sum_over_rows(mean_h);
    if (threadIdx.y == 0) parts[0][threadIdx.x] = mean, parts[1][threadIdx.x] = mean_h;
    __syncthreads();
    mean = mean_h = 0;
    for (int x = 0; x < kNormColumns; ++x) mean += parts[0][x], mean_h += parts[1][x];
    __syncthreads();  // before the next group writes parts
  }
  const double n = static_cast<double>(q.s.count());
  return norm_group(q, g, static_cast<T>(mean / n), static_cast<T>(mean_h / n));
}

// Sums of column x over the group; columns beyond k take part in the barriers only.
template <typename T>
__device__ inline NormSums<T> norm_sums(const NormProblem<T>& q, const NormGroup<T>& own, int64_t g, int64_t x) {
  NormSums<T> s{};
  double p_total = 0;
  for (int64_t i = threadIdx.y; x < q.s.k && i < q.s.count(); i += kNormRows) {
    const int64_t at = norm_entry(q, g, i);
    const T xh = q.xh[at];
    if (q.d != nullptr) {
      const T d = q.d[at * q.s.k + x];
      s.d += d;
      s.d_h += xh * d;
      if (q.delta != nullptr) {
        const T p = own.p(q.delta[at], xh);
        s.d_p += p * d;
        p_total += p;
      }
    }
    if (q.ddelta != nullptr) {
      const T e = q.ddelta[at * q.s.k + x];
      s.e += e;
      s.e_h += xh * e;
    }
  }
  const T d = sum_over_rows(s.d), leak = own.leak(sum_over_rows(p_total));
  return {d, sum_over_rows(s.d_h), sum_over_rows(s.d_p) - leak * d, sum_over_rows(s.e), sum_over_rows(s.e_h)};
}

template <bool kBackward, typename T>
__global__ void norm_tangent_kernel(NormProblem<T> q) {
  const int64_t panels = (q.s.k + kNormColumns - 1) / kNormColumns;
  for (int64_t task = blockIdx.x; task < q.s.G * panels; task += gridDim.x) {
    const int64_t g = task / panels, x = task % panels * kNormColumns + threadIdx.x, own_column = g * q.s.k + x;
    const NormGroup<T> own = norm_group_on_device(q, g);
    const NormSums<T> sums = norm_sums(q, own, g, x);
    if (x >= q.s.k) continue;  // the barriers of this task are behind
    const T dgamma = q.dgamma == nullptr ? T(0) : q.dgamma[own_column];
    NormCoefficients<T, T> c;
    if constexpr (kBackward) {
      c = backward_coefficients<T, T>(own, sums, dgamma);
      if (threadIdx.y == 0) {
        q.dweight[own_column] = sums.e_h + sums.d_p;
        q.dbias[own_column] = sums.e;
      }
    } else {
      c = forward_coefficients<T, T>(own, sums, dgamma, q.dbeta == nullptr ? T(0) : q.dbeta[own_column]);
    }
    for (int64_t i = threadIdx.y; i < q.s.count(); i += kNormRows) {
      const int64_t at = norm_entry(q, g, i), entry = at * q.s.k + x;
      T value = c.constant + q.xh[at] * c.of_h;
      if constexpr (kBackward) value += own.p(q.delta[at], q.xh[at]) * c.of_p;
      if (q.d != nullptr) value += c.of_d * q.d[entry];
      if (kBackward && q.ddelta != nullptr) value += c.of_e * q.ddelta[entry];
      q.out[entry] = value;
    }
  }
}

}  // namespace chaos_ext
