// tridiagonal_apply on the CPU: U x or U^T x for the eigenvectors U = Q R P of S, Q from tridiagonalise (reflections),
// R from tridiagonal_ql (rotations), P the permutation that sorts the eigenvalues. Formulas: there.
//
// Parallel over groups of kGroup vectors, which share the reading of the rotations. Cost: 4 n^2 flops a vector for Q,
// 6 a rotation for R; U itself is never formed. In float64 whatever the dtype of the reflectors, so U is orthogonal to
// float64 rounding.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "../common/cpu_target.h"
#include "tridiagonal_ql.h"
#include "tridiagonalise.h"

namespace chaos_ext {
namespace {

template <typename T>
struct ApplyKernels {
  void (*reflect)(const T* v, int64_t size, double* x);
};

#define CE_FILE "../spectrum/tridiagonal_apply_kernel.inl"
#include "../common/foreach_target.inl"

const ApplyKernels<float>& kernels_for(float) { return CE_CHOOSE(float, kernels); }
const ApplyKernels<double>& kernels_for(double) { return CE_CHOOSE(double, kernels); }

constexpr int64_t kGroup = 4;

// U as its factors.
template <typename T>
struct Factors {
  const T* reflectors;
  const int64_t* order;
  Rotations rotations;
  int64_t n;
};

// Q^T x or Q x, in place.
template <typename T>
void reflections(const Factors<T>& U, double* x, bool transpose) {
  const auto reflect = kernels_for(T{}).reflect;
  const int64_t ld = padded_stride(U.n);
  for (int64_t k = 1; k < U.n; ++k) {
    const int64_t i = transpose ? U.n - k : k;
    reflect(U.reflectors + i * ld, i, x);
  }
}

// L vectors x [L, n] -> out [L, n].
template <int64_t L, typename T>
void apply(const Factors<T>& U, const double* x, bool transpose, double* out) {
  const int64_t n = U.n, rows = padded_rows(n);
  std::vector<double> z(n * L), q(rows, 0.0);
  for (int64_t j = 0; j < L; ++j) {
    if (transpose) {
      std::copy_n(x + j * n, n, q.begin());
      reflections(U, q.data(), transpose);
    }
    for (int64_t i = 0; i < n; ++i) z[(transpose ? i : U.order[i]) * L + j] = transpose ? q[i] : x[j * n + i];
  }
  transpose ? rotate<L>(U.rotations, z.data()) : rotate_back<L>(U.rotations, z.data());
  for (int64_t j = 0; j < L; ++j) {
    for (int64_t i = 0; i < n; ++i) q[i] = z[(transpose ? U.order[i] : i) * L + j];
    if (!transpose) reflections(U, q.data(), transpose);
    std::copy_n(q.begin(), n, out + j * n);
  }
}

template <typename T>
void apply_group(const Factors<T>& U, int64_t count, const double* x, bool transpose, double* out) {
  switch (count) {
    case 1: return apply<1>(U, x, transpose, out);
    case 2: return apply<2>(U, x, transpose, out);
    case 3: return apply<3>(U, x, transpose, out);
    default: return apply<4>(U, x, transpose, out);
  }
}

Tensor tridiagonal_apply_cpu(const Tensor& reflectors,  // [padded_rows(n), padded_stride(n)]
                             const Tensor& order,       // [n] int64
                             const Tensor& sweeps,      // [s, 3] int64
                             const Tensor& rotations,   // [r, 2] float64
                             const Tensor& x,           // [k, n] float64
                             bool transpose) {
  check_apply(reflectors, order, sweeps, rotations, x);
  const int64_t k = x.size(0), n = x.size(1);
  Tensor out = new_empty(x, {k, n});
  if (out.numel() == 0) return out;
  const Rotations R{data<int64_t>(sweeps), sweeps.size(0), data<double>(rotations)};
  const double* from = data<double>(x);
  double* to = mutable_data<double>(out);
  dispatch_floating(reflectors, [&](auto zero) {
    using T = decltype(zero);
    const Factors<T> U{data<T>(reflectors), data<int64_t>(order), R, n};
    torch::stable::parallel_for(0, (k + kGroup - 1) / kGroup, 1, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin * kGroup; j < std::min(k, end * kGroup); j += kGroup) {
        apply_group(U, std::min(kGroup, k - j), from + j * n, transpose, to + j * n);
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CPU, m) {
  m.impl("tridiagonal_apply", TORCH_BOX(&chaos_ext::tridiagonal_apply_cpu));
}
