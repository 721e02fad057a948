// tridiagonal_ql: eigenvalues of a symmetric tridiagonal T [n, n] by implicit QL, and the rotations that diagonalise
// it:  T = R diag(values) R^T,  R = G_1 G_2 ..,  so that R^T x and R x cost O(n^2) and no eigenvector is formed.
//
// A sweep over the block l..m turns the planes (i, i + 1), i = m - 1 .. l, with the shift sigma (EISPACK's tql2):
//
//   start:  g = d_m - sigma, s = c = 1, p = 0
//   at i:   f = s e_i, b = c e_i, r = hypot(f, g), e_{i+1} = r, s = f / r, c = g / r
//           q = d_{i+1} - p, r = (d_i - q) s + 2 c b, p = s r, d_{i+1} = q + p, g = c r - b
//   end:    d_l -= p, e_l = g
//
// A step waits for a root and a division, so up to kSweeps sweeps run interleaved, two places apart, with the
// eigenvalues of the leading block as shifts. e_i counts as zero where |e_i| <= tol max|T| (a little more where sweeps
// do not get it there).
//
// Cost: about n^2 rotations of 16 bytes each. One thread, float64.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/arguments.h"
#include "tridiagonalise.h"

namespace chaos_ext {

constexpr int64_t kSweeps = 4;

// Sweeps in order: (l, m, index of the first rotation), then (c, s) for i = m - 1 .. l.
struct Rotations {
  const int64_t* sweeps;
  int64_t count;
  const double* cs;
};

// z <- R^T z for L interleaved vectors, z [n, L].
template <int64_t L>
inline void rotate(const Rotations& R, double* z) {
  for (int64_t k = 0; k < R.count; ++k) {
    const int64_t l = R.sweeps[3 * k], m = R.sweeps[3 * k + 1];
    const double* cs = R.cs + 2 * R.sweeps[3 * k + 2];
    double carried[L];
    std::copy_n(z + m * L, L, carried);
    for (int64_t i = m - 1; i >= l; --i, cs += 2) {
      double* at = z + i * L;
      for (int64_t x = 0; x < L; ++x) {
        const double value = at[x];
        at[L + x] = cs[1] * value + cs[0] * carried[x];
        carried[x] = cs[0] * value - cs[1] * carried[x];
      }
    }
    std::copy_n(carried, L, z + l * L);
  }
}

// z <- R z, the same.
template <int64_t L>
inline void rotate_back(const Rotations& R, double* z) {
  for (int64_t k = R.count - 1; k >= 0; --k) {
    const int64_t l = R.sweeps[3 * k], m = R.sweeps[3 * k + 1];
    const double* cs = R.cs + 2 * (R.sweeps[3 * k + 2] + m - 1 - l);
    double carried[L];
    std::copy_n(z + l * L, L, carried);
    for (int64_t i = l; i < m; ++i, cs -= 2) {
      double* at = z + i * L;
      for (int64_t x = 0; x < L; ++x) {
        const double value = at[L + x];
        at[x] = cs[0] * carried[x] + cs[1] * value;
        carried[x] = cs[0] * value - cs[1] * carried[x];
      }
    }
    std::copy_n(carried, L, z + m * L);
  }
}

// float64 or int64.
inline void check_dtype(const char* op, const char* arg, const Tensor& t, ScalarType type) {
  CE_EXPECT(t.scalar_type() == type, op, ": expected ", arg, " of dtype ",
            type == ScalarType::Double ? "float64" : "int64", ", got ", torch::headeronly::toString(t.scalar_type()));
}

inline void check_ql(const Tensor& d, const Tensor& e, double tol) {  // [n], [n - 1]
  const char* op = "tridiagonal_ql";
  check_arguments(op, {reads("d", d), reads("e", e)});
  check_dtype(op, "d", d, ScalarType::Double);
  check_dim(op, "d", d, 1);
  check_contiguous(op, "d", d);
  check_operand(op, "e", e, "d", d, {d.size(0) > 0 ? d.size(0) - 1 : 0});
  CE_EXPECT(product_of({d.size(0), d.size(0)}) <= kMostNumbers, op, ": expected d of at most 2^25 numbers, got ",
            d.size(0));
  CE_EXPECT(tol >= 0 && tol < 1, op, ": expected 0 <= tol < 1, got ", tol);
}

inline void check_apply(const Tensor& reflectors,  // [padded_rows(n), padded_stride(n)]
                        const Tensor& order,       // [n] int64
                        const Tensor& sweeps,      // [s, 3] int64
                        const Tensor& rotations,   // [r, 2] float64
                        const Tensor& x) {         // [k, n] float64
  const char* op = "tridiagonal_apply";
  check_arguments(op, {reads("x", x), reads("reflectors", reflectors), reads("order", order), reads("sweeps", sweeps),
                       reads("rotations", rotations)});
  check_floating(op, "reflectors", reflectors);
  check_dtype(op, "x", x, ScalarType::Double);
  check_dim(op, "x", x, 2);
  check_contiguous(op, "x", x);
  check_shape(op, "reflectors", reflectors, {padded_rows(x.size(1)), padded_stride(x.size(1))});
  check_contiguous(op, "reflectors", reflectors);
  check_dtype(op, "order", order, ScalarType::Long);
  check_shape(op, "order", order, {x.size(1)});
  check_contiguous(op, "order", order);
  check_dtype(op, "sweeps", sweeps, ScalarType::Long);
  check_dim(op, "sweeps", sweeps, 2);
  check_shape(op, "sweeps", sweeps, {sweeps.size(0), 3});
  check_contiguous(op, "sweeps", sweeps);
  check_dim(op, "rotations", rotations, 2);
  check_operand(op, "rotations", rotations, "x", x, {rotations.size(0), 2});
  const int64_t n = x.size(1), *at = data<int64_t>(order), *sweep = data<int64_t>(sweeps);
  std::vector<bool> taken(n, false);
  for (int64_t i = 0; i < n; ++i) {
    CE_EXPECT(0 <= at[i] && at[i] < n, op, ": expected order within [0, ", n, "), got ", at[i]);
    CE_EXPECT(!taken[at[i]], op, ": expected order with each index once, got ", at[i], " twice");
    taken[at[i]] = true;
  }
  for (int64_t k = 0; k < sweeps.size(0); ++k, sweep += 3) {
    const int64_t l = sweep[0], m = sweep[1], first = sweep[2];
    const bool inside = 0 <= l && l < m && m < n && 0 <= first && first <= rotations.size(0) - (m - l);
    CE_EXPECT(inside, op, ": expected sweeps (l, m, first) with 0 <= l < m < ", n, " and m - l of the ",
              rotations.size(0), " rotations from first on, got (", l, ", ", m, ", ", first, ")");
  }
}

}  // namespace chaos_ext
