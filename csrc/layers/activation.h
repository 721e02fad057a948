// activation(z, kind, alpha, beta) -> (a, d1, d2): f(z), f'(z), f''(z) elementwise in one pass over z, where three
// elementwise calls would read z three times and evaluate the same exponential three times.
// Cost: one read and two or three writes of z's size. d2 is an empty [0] tensor for piecewise-linear kinds.
#pragma once

#include <tuple>

#include "../common/arguments.h"
#include "activation_math.h"

namespace chaos_ext {

struct ActivationOutputs {
  Tensor a;   // as z
  Tensor d1;  // as z
  Tensor d2;  // as z, or [0]

  std::tuple<Tensor, Tensor, Tensor> tuple() const { return {a, d1, d2}; }
};

// Checks the arguments and allocates the outputs.
inline ActivationOutputs prepare_activation(const Tensor& z,  // any shape
                                            int64_t kind) {
  constexpr int64_t kinds = static_cast<int64_t>(Activation::kCount);
  check_arguments("activation", {reads("z", z)});
  check_floating("activation", "z", z);
  check_contiguous("activation", "z", z);
  CE_EXPECT(kind >= 0 && kind < kinds, "activation: expected kind in [0, ", kinds, "), got ", kind);
  const bool linear = is_piecewise_linear(static_cast<Activation>(kind));
  return {new_empty_like(z), new_empty_like(z), linear ? new_empty(z, {0}) : new_empty_like(z)};
}

}  // namespace chaos_ext
