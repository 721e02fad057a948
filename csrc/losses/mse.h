// Squared error of z against y, any shape:
//
//   loss  = scale sum (z - y)^2,   delta = 2 scale (z - y)            (the Hessian in z is 2 scale I)
//
// scale carries the normaliser. Fused: one read of z, y, one write of delta.
#pragma once

#include <tuple>

#include "../common/arguments.h"

namespace chaos_ext {

struct MseOutputs {
  Tensor loss;   // []
  Tensor delta;  // as z

  std::tuple<Tensor, Tensor> tuple() const { return {loss, delta}; }
};

inline MseOutputs prepare_mse(const Tensor& z,    // any shape
                              const Tensor& y) {  // as z
  check_arguments("mse", {reads("z", z), reads("y", y)});
  check_floating("mse", "z", z);
  check_contiguous("mse", "z", z);
  check_like("mse", "y", y, "z", z);
  check_same_shape("mse", "y", y, "z", z);
  check_contiguous("mse", "y", y);
  return {new_empty(z, {}), new_empty_like(z)};
}

}  // namespace chaos_ext
