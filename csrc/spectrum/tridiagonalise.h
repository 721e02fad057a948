// tridiagonalise: S = Q T Q^T for a symmetric S [n, n], T tridiagonal, Q a product of Householder reflections.
//
//   for i = n - 1 .. 1:  a = row i of the current matrix, entries 0 .. i - 1
//     v_i = a + sign(a_{i-1}) |a| 1_{i-1},  so that  H_i a = e_{i-1} 1_{i-1},  H_i = 1 - 2 v_i v_i^T / |v_i|^2
//     (v_i = 0 and H_i = 1 where a is e_{i-1} 1_{i-1} already)
//     leading [i, i] block A -= v w^T + w v^T,  w = tau A v - tau (tau v.A v / 2) v,  tau = 2 / |v|^2
//   d_i = what is left on the diagonal;  Q = H_{n-1} .. H_1
//
// Blocked (LAPACK's sytrd): the updates of kDepth rows are collected as V, W and applied in one pass over the matrix;
// until then A v is corrected by the collected V, W. Only the lower triangle of S is read, each number once for both
// A v's rows and columns.
//
// Cost: 4/3 n^3 flops, half of them in A v, which reads n^3 / 6 numbers from the caches; that bounds the time.
#pragma once

#include "../common/arguments.h"
#include "reflector_shape.h"

namespace chaos_ext {

inline Tensor new_double(const Tensor& like, std::initializer_list<int64_t> shape) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()),
                                  ScalarType::Double);
}

inline void check_tridiagonalise(const Tensor& S) {  // [n, n]
  const char* op = "tridiagonalise";
  check_arguments(op, {reads("S", S)});
  check_floating(op, "S", S);
  check_dim(op, "S", S, 2);
  CE_EXPECT(S.size(0) == S.size(1), op, ": expected S square, got ", shape_string(S.sizes()));
  check_contiguous(op, "S", S);
}

}  // namespace chaos_ext
