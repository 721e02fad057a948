// Tangents of a normalisation with statistics of its input, z = gamma xh + beta, and of its adjoint, for k columns.
//
// Entries are [B, G, M]; a group g shares its mean, r and, if given, gamma and beta; means run over b and m. With
// xh = r (x - mean x), r = (variance + eps)^(-1/2), and the cotangent delta at z:
//
//     norm_tangent_            dz = r gamma (d - mean d - xh mean(xh d)) + xh dgamma + dbeta
//     norm_tangent_backward_   the tangent of delta_x = r gamma (delta - mean delta - xh mean(xh delta)), of
//                              g_gamma = sum xh delta and of g_beta = sum delta, under d, dgamma and ddelta
//
// Both are an affine combination of the given tangents with coefficients from sums over the group
// (norm_tangent_math.h): one pass for the sums, one for the result, the second from the cache as long as a group's
// columns fit. Written as torch calls the second makes eighteen passes over memory, and the tangent of xh is one of the
// temporaries.
#pragma once

#include <optional>

#include "../common/arguments.h"
#include "norm_tangent_math.h"

namespace chaos_ext {

struct NormArguments {
  const char* op;
  const Tensor& out;                    // [B, G, M, k]
  const Tensor& xh;                     // [B, G, M]
  const Tensor& r;                      // [G]
  const std::optional<Tensor>& d;       // as out
  const std::optional<Tensor>& gamma;   // [G]
  const std::optional<Tensor>& dgamma;  // [G, k]
};

// The part of the problem that both operators have; T is the dtype of out.
template <typename T>
NormProblem<T> norm_problem(const NormArguments& a) {
  check_dim(a.op, "out", a.out, 4);
  check_contiguous(a.op, "out", a.out);
  NormProblem<T> q{};
  q.s = {a.out.size(0), a.out.size(1), a.out.size(2), a.out.size(3)};
  check_operand(a.op, "xh", a.xh, "out", a.out, {q.s.B, q.s.G, q.s.M});
  check_operand(a.op, "r", a.r, "out", a.out, {q.s.G});
  const auto optional = [&](const char* arg, const std::optional<Tensor>& t, std::initializer_list<int64_t> shape) {
    if (t) check_operand(a.op, arg, *t, "out", a.out, shape);
    return t ? data<T>(*t) : nullptr;
  };
  q.d = optional("d", a.d, {q.s.B, q.s.G, q.s.M, q.s.k});
  q.gamma = optional("gamma", a.gamma, {q.s.G});
  q.dgamma = optional("dgamma", a.dgamma, {q.s.G, q.s.k});
  q.out = mutable_data<T>(a.out);
  q.xh = data<T>(a.xh);
  q.r = data<T>(a.r);
  return q;
}

template <typename T>
NormProblem<T> norm_forward_problem(const NormArguments& a, const std::optional<Tensor>& dbeta) {  // [G, k]
  check_arguments(a.op, {writes("out", a.out), reads("xh", a.xh), reads("r", a.r), reads("d", a.d),
                         reads("gamma", a.gamma), reads("dgamma", a.dgamma), reads("dbeta", dbeta)});
  NormProblem<T> q = norm_problem<T>(a);
  if (dbeta) check_operand(a.op, "dbeta", *dbeta, "out", a.out, {q.s.G, q.s.k});
  q.dbeta = dbeta ? data<T>(*dbeta) : nullptr;
  return q;
}

template <typename T>
NormProblem<T> norm_backward_problem(const NormArguments& a, const Tensor& dweight,  // [G, k]
                                     const Tensor& dbias,                            // [G, k]
                                     const std::optional<Tensor>& ddelta,            // as out
                                     const Tensor& delta) {                          // as xh
  check_arguments(a.op, {writes("out", a.out), writes("dweight", dweight), writes("dbias", dbias), reads("xh", a.xh),
                         reads("r", a.r), reads("delta", delta), reads("d", a.d), reads("ddelta", ddelta),
                         reads("gamma", a.gamma), reads("dgamma", a.dgamma)});
  NormProblem<T> q = norm_problem<T>(a);
  check_operand(a.op, "dweight", dweight, "out", a.out, {q.s.G, q.s.k});
  check_operand(a.op, "dbias", dbias, "out", a.out, {q.s.G, q.s.k});
  check_operand(a.op, "delta", delta, "out", a.out, {q.s.B, q.s.G, q.s.M});
  if (ddelta) check_operand(a.op, "ddelta", *ddelta, "out", a.out, {q.s.B, q.s.G, q.s.M, q.s.k});
  q.dweight = mutable_data<T>(dweight);
  q.dbias = mutable_data<T>(dbias);
  q.delta = data<T>(delta);
  q.ddelta = ddelta ? data<T>(*ddelta) : nullptr;
  return q;
}

}  // namespace chaos_ext
