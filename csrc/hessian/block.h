// hessian_block_: the block of the dense Hessian that couples layer s (rows) with layer t (columns), written into
// H [P, P] in place together with its transpose.
//
//   value(i, j, k, l) = sum_n a_s[n, j] (K[i, n, k] a_t[n, l] + delta_t[n, k] J[i, n, l])
//
// N batch; i < O_s, k < O_t output units; j <= I_s, l <= I_t inputs, where the last one is the bias: a = 1, J = 0.
// K[i, n, k] is the tangent of delta_t[n, k] and J[i, n, l] that of a_t[n, l] under the unit tangent i at layer s.
// Row of (i, j): row_w + i I_s + j for j < I_s (the weight), row_b + i for j = I_s (the bias); columns alike.
// A negative offset says that these parameters do not exist. Each value is computed once and written to H[row, col]
// and to H[col, row]: the result is exactly symmetric. Nothing else in H is touched, and nothing is accumulated.
//
// same = true: s is t (J and delta_t absent, a_t not read: a_s serves both). K is symmetric in (i, k) up to
// rounding; only i <= k is read, so that all mirrored entries (i,j,k,l), (k,l,i,j), (i,l,k,j), (k,j,i,l) are equal.
//
// Cost: 2 N flops and one write per entry of H, half of the flops by symmetry (a quarter for same = true). What the
// fusion saves: ATen would write the block, read it, and write it (and its transpose) again.
#pragma once

#include <optional>

#include "../common/arguments.h"
#include "block_problem.h"

namespace chaos_ext {

struct BlockSizes {
  int64_t N, O_s, I_s, O_t, I_t;
};

namespace block_checks {

constexpr const char* kOp = "hessian_block_";

// Of ranges that check_span has seen.
inline bool overlap(int64_t a, int64_t a_size, int64_t b, int64_t b_size) {
  return a >= 0 && b >= 0 && a < b + b_size && b < a + a_size;
}

inline void check_span(const char* side, const ParameterSpan& span, int64_t O, int64_t I, int64_t P) {
  CE_EXPECT(span.weight < 0 || within(span.weight, product_of({O, I}), P), kOp, ": expected ", side,
            "_w + O I <= P = ", P, ", got ", span.weight, " + ", O, " * ", I);
  CE_EXPECT(span.bias < 0 || within(span.bias, O, P), kOp, ": expected ", side, "_b + O <= P = ", P, ", got ",
            span.bias, " + ", O);
  CE_EXPECT(!overlap(span.weight, O * I, span.bias, O), kOp, ": expected disjoint ", side, "_w and ", side,
            "_b ranges, got ", span.weight, " and ", span.bias);
}

inline void check_disjoint(const ParameterSpan& row, const ParameterSpan& col, const BlockSizes& d) {
  const int64_t rows = d.O_s * d.I_s, cols = d.O_t * d.I_t;
  CE_EXPECT(!overlap(row.weight, rows, col.weight, cols) && !overlap(row.weight, rows, col.bias, d.O_t) &&
                !overlap(row.bias, d.O_s, col.weight, cols) && !overlap(row.bias, d.O_s, col.bias, d.O_t),
            kOp, ": expected disjoint row and column ranges unless same, got row_w ", row.weight, ", row_b ", row.bias,
            ", col_w ", col.weight, ", col_b ", col.bias);
}

inline void check_matrix(const Tensor& H) {
  check_floating(kOp, "H", H);
  check_dim(kOp, "H", H, 2);
  const int64_t P = H.size(0);
  CE_EXPECT(H.size(1) == P, kOp, ": expected H square, got ", shape_string(H.sizes()));
  CE_EXPECT(P <= 1 || (H.stride(1) == 1 && H.stride(0) >= P), kOp,
            ": expected H with contiguous rows (strides [>= P, 1]), got strides ", shape_string(H.strides()));
}

inline void check_same(const std::optional<Tensor>& K, const std::optional<Tensor>& J, const ParameterSpan& row,
                       const ParameterSpan& col, const BlockSizes& d) {
  CE_EXPECT(K.has_value() && !J.has_value(), kOp, ": expected K and no J, delta_t for same, got ",
            K.has_value() ? "J" : "no K");
  CE_EXPECT(d.O_s == d.O_t && d.I_s == d.I_t, kOp, ": expected equal layer sizes for same, got O_s ", d.O_s, ", O_t ",
            d.O_t, ", I_s ", d.I_s, ", I_t ", d.I_t);
  CE_EXPECT(row.weight == col.weight && row.bias == col.bias, kOp,
            ": expected equal row and column offsets for same, got row_w ", row.weight, ", row_b ", row.bias,
            ", col_w ", col.weight, ", col_b ", col.bias);
}

}  // namespace block_checks

// Checks everything and returns the sizes.
inline BlockSizes check_block(const Tensor& H,                       // [P, P], row stride >= P
                              const Tensor& a_s,                     // [N, I_s]
                              const std::optional<Tensor>& K,        // [O_s, N, O_t]
                              const std::optional<Tensor>& a_t,      // [N, I_t]
                              const std::optional<Tensor>& delta_t,  // [N, O_t]
                              const std::optional<Tensor>& J,        // [O_s, N, I_t]
                              const ParameterSpan& row, const ParameterSpan& col, bool same) {
  using namespace block_checks;
  check_arguments(kOp, {writes("H", H), reads("a_s", a_s), reads("K", K), reads("a_t", a_t), reads("delta_t", delta_t),
                        reads("J", J)});
  check_matrix(H);
  check_dim(kOp, "a_s", a_s, 2);
  CE_EXPECT(K.has_value() || J.has_value(), kOp, ": expected K with a_t, J with delta_t, or both, got neither");
  CE_EXPECT(K.has_value() == a_t.has_value() || (same && K.has_value()), kOp,
            ": expected K and a_t together, got only ", K.has_value() ? "K" : "a_t");
  CE_EXPECT(J.has_value() == delta_t.has_value(), kOp, ": expected J and delta_t together, got only ",
            J.has_value() ? "J" : "delta_t");
  if (K) check_dim(kOp, "K", *K, 3);
  if (J) check_dim(kOp, "J", *J, 3);
  if (a_t) check_dim(kOp, "a_t", *a_t, 2);
  if (delta_t) check_dim(kOp, "delta_t", *delta_t, 2);
  BlockSizes d{};
  d.N = a_s.size(0);
  d.I_s = a_s.size(1);
  d.O_s = K ? K->size(0) : J->size(0);
  d.O_t = K ? K->size(2) : delta_t->size(1);
  d.I_t = a_t ? a_t->size(1) : (J ? J->size(2) : d.I_s);
  check_operand(kOp, "a_s", a_s, "H", H, {d.N, d.I_s});
  if (K) check_operand(kOp, "K", *K, "H", H, {d.O_s, d.N, d.O_t});
  if (a_t) check_operand(kOp, "a_t", *a_t, "H", H, {d.N, d.I_t});
  if (delta_t) check_operand(kOp, "delta_t", *delta_t, "H", H, {d.N, d.O_t});
  if (J) check_operand(kOp, "J", *J, "H", H, {d.O_s, d.N, d.I_t});
  CE_EXPECT(product_of({d.O_s, d.I_s + 1, d.O_t, d.I_t + 1, d.N + 8}) < kTooMany, kOp,
            ": expected fewer than 2^63 products, got O_s ", d.O_s, ", I_s ", d.I_s, ", O_t ", d.O_t, ", I_t ", d.I_t,
            ", N ", d.N);
  check_span("row", row, d.O_s, d.I_s, H.size(0));
  check_span("col", col, d.O_t, d.I_t, H.size(0));
  if (same) {
    check_same(K, J, row, col, d);
  } else {
    check_disjoint(row, col, d);
  }
  return d;
}

// Whether nothing is written: no unit, or no parameter, of one of the layers.
inline bool is_empty_block(const BlockSizes& d, const ParameterSpan& row, const ParameterSpan& col) {
  const auto has = [](const ParameterSpan& span) { return span.has_weight() || span.has_bias(); };
  return d.O_s == 0 || d.O_t == 0 || !has(row) || !has(col);
}

template <typename T>
BlockProblem<T> block_problem(const Tensor& H, const Tensor& a_s, const std::optional<Tensor>& K,
                              const std::optional<Tensor>& a_t, const std::optional<Tensor>& delta_t,
                              const std::optional<Tensor>& J, const BlockSizes& d, const ParameterSpan& row,
                              const ParameterSpan& col) {
  const auto pointer = [](const std::optional<Tensor>& t) { return t ? data<T>(*t) : nullptr; };
  return {mutable_data<T>(H),
          data<T>(a_s),
          pointer(K),
          pointer(a_t),
          pointer(delta_t),
          pointer(J),
          H.stride(0),
          d.N,
          d.O_s,
          d.I_s,
          d.O_t,
          d.I_t,
          row,
          col,
          K.has_value(),
          J.has_value()};
}

}  // namespace chaos_ext
