// Binary cross-entropy of logits z against y in [0, 1], with element weight w and positive weight pw:
//
//   loss      = scale sum w ((1 - y) softplus(z) + pw y softplus(-z))
//   delta     = scale w ((1 - y) sigma(z) - pw y sigma(-z))
//   curvature = scale w (1 + (pw - 1) y) sigma(z) sigma(-z)          (the Hessian in z is diagonal)
//
// All tensors have z's shape [N, O]; w and pw may be empty [0] for ones. scale carries the normaliser.
// Fused: one read of z, y (w, pw), one write of delta and curvature, and one exponential an element.
#pragma once

#include <tuple>

#include "../common/arguments.h"

namespace chaos_ext {

struct BceOutputs {
  Tensor loss;       // []
  Tensor delta;      // as z
  Tensor curvature;  // as z

  std::tuple<Tensor, Tensor, Tensor> tuple() const { return {loss, delta, curvature}; }
};

inline void check_bce_weight(const char* arg, const Tensor& weight, const Tensor& z) {
  const char* op = "bce_with_logits";
  check_like(op, arg, weight, "z", z);
  if (weight.dim() == 1 && weight.size(0) == 0) return;
  check_same_shape(op, arg, weight, "z", z);
  check_contiguous(op, arg, weight);
}

inline BceOutputs prepare_bce(const Tensor& z,     // [N, O]
                              const Tensor& y,     // as z
                              const Tensor& w,     // as z, or [0]
                              const Tensor& pw) {  // as z, or [0]
  const char* op = "bce_with_logits";
  check_arguments(op, {reads("z", z), reads("y", y), reads("w", w), reads("pw", pw)});
  check_floating(op, "z", z);
  check_contiguous(op, "z", z);
  check_like(op, "y", y, "z", z);
  check_same_shape(op, "y", y, "z", z);
  check_contiguous(op, "y", y);
  check_bce_weight("w", w, z);
  check_bce_weight("pw", pw, z);
  return {new_empty(z, {}), new_empty_like(z), new_empty_like(z)};
}

}  // namespace chaos_ext
