// Cross-entropy of logits z against target weights t, with what second-order backprop needs from it.
//
//   loss     = sum_n sum_c t_nc (lse_n - z_nc),   lse_n = log sum_c exp z_nc
//   p_nc     = exp(z_nc - lse_n)
//   delta_nc = d loss / d z_nc = p_nc sum_{c' != c} t_nc' - t_nc sum_{c' != c} p_nc'
//   tangent  = s_n (diag p_n - p_n p_n^T) dz_n,   s_n = sum_c t_nc
//
// N batch, C classes, k tangent columns. t already holds class weight, label smoothing and normaliser; where it is one
// number at the label y_n and another elsewhere, cross_entropy_labels takes these instead: t_nc = c == y_n ? own :
// others.
//
// Accuracy on fitted batches, where p -> onehot: lse_n - z_nc = (m - z_nc) + log1p(S) with m the maximal logit and
// S = sum_{c != argmax} exp(z_nc - m), so a loss of 1e-30 keeps its digits. A sum over the others of a class is
// total - own where own is not the largest term (own <= total / 2: no cancellation) and is summed without the
// largest otherwise; 1 - p is never formed. The tangent is taken relative to the logit tangent of the most probable
// class: with e = dz - dz_ref, out_c = s p_c (e_c - sum_c' p_c' e_c'), where e_ref = 0 exactly.
//
// Cost: cross_entropy reads z, t (cross_entropy_labels: z alone) and writes delta, p once; cross_entropy_tangent reads
// and writes k N C numbers once.
#pragma once

#include <tuple>

#include "../common/arguments.h"

namespace chaos_ext {

struct CrossEntropyOutputs {
  Tensor loss;   // []
  Tensor delta;  // [N, C]
  Tensor p;      // [N, C]

  std::tuple<Tensor, Tensor, Tensor> tuple() const { return {loss, delta, p}; }
};

inline CrossEntropyOutputs prepare_cross_entropy(const Tensor& z,    // [N, C]
                                                 const Tensor& t) {  // [N, C]
  const char* op = "cross_entropy";
  check_arguments(op, {reads("z", z), reads("t", t)});
  check_floating(op, "z", z);
  check_dim(op, "z", z, 2);
  check_contiguous(op, "z", z);
  CE_EXPECT(z.size(1) > 0 || z.size(0) == 0, op, ": expected z with at least one class, got ", shape_string(z.sizes()));
  check_operand(op, "t", t, "z", z, {z.size(0), z.size(1)});
  return {new_empty(z, {}), new_empty_like(z), new_empty_like(z)};
}

inline CrossEntropyOutputs prepare_cross_entropy_labels(const Tensor& z,    // [N, C]
                                                        const Tensor& y) {  // [N] int64
  const char* op = "cross_entropy_labels";
  check_arguments(op, {reads("z", z), reads("y", y)});
  check_floating(op, "z", z);
  check_dim(op, "z", z, 2);
  check_contiguous(op, "z", z);
  CE_EXPECT(z.size(1) > 0 || z.size(0) == 0, op, ": expected z with at least one class, got ", shape_string(z.sizes()));
  CE_EXPECT(y.scalar_type() == ScalarType::Long, op, ": expected y of dtype int64, got ",
            torch::headeronly::toString(y.scalar_type()));
  check_shape(op, "y", y, {z.size(0)});
  check_contiguous(op, "y", y);
  return {new_empty(z, {}), new_empty_like(z), new_empty_like(z)};
}

inline Tensor prepare_cross_entropy_tangent(const Tensor& p,     // [N, C]
                                            const Tensor& s,     // [N]
                                            const Tensor& dz) {  // [N, C, k]
  const char* op = "cross_entropy_tangent";
  check_arguments(op, {reads("p", p), reads("s", s), reads("dz", dz)});
  check_floating(op, "p", p);
  check_dim(op, "p", p, 2);
  check_contiguous(op, "p", p);
  check_operand(op, "s", s, "p", p, {p.size(0)});
  check_dim(op, "dz", dz, 3);
  check_operand(op, "dz", dz, "p", p, {p.size(0), p.size(1), dz.size(2)});
  return new_empty_like(dz);
}

}  // namespace chaos_ext
