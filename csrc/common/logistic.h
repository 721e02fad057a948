// sigma(z) = 1 / (1 + exp(-z)) and softplus(z) = ln(1 + exp z), as activations and binary cross-entropy need them;
// shared by CPU and CUDA.
#pragma once

#include "exp_math.h"

namespace chaos_ext {

// Of |z|: e = exp(-|z|) with expm1(-|z|), big = sigma(|z|), small = sigma(-|z|), each to full relative accuracy.
template <typename T>
struct Logistic {
  ExpParts<T> e;
  T big, small;

  // softplus(-|z|)
  CHAOS_EXT_HD T softplus_tail() const { return log1p_unit(e.exp); }
};

template <typename T>
CHAOS_EXT_HD Logistic<T> logistic(T z) {
  const ExpParts<T> e = exp_parts(z < T(0) ? z : -z);
  const T big = T(1) / (T(1) + e.exp);
  return {e, big, e.exp * big};
}

}  // namespace chaos_ext
