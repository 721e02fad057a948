// Binary cross-entropy of one logit, shared by CPU and CUDA; see bce.h.
#pragma once

#include "../common/logistic.h"

namespace chaos_ext {

template <typename T>
struct BceValues {
  T loss, delta, curvature;
};

// weight * value, exactly 0 for weight 0 even where value is infinite.
template <typename T>
CHAOS_EXT_HD T weighted(T weight, T value) {
  return weight == T(0) ? T(0) : weight * value;
}

template <typename T>
CHAOS_EXT_HD BceValues<T> bce_values(T z, T y, T w, T pw, T scale) {
  const Logistic<T> of = logistic(z);
  const T tail = of.softplus_tail();
  const bool positive = z > T(0);
  const T softplus_z = positive ? z + tail : tail;
  const T softplus_minus_z = positive ? tail : tail - z;
  const T sigma_z = positive ? of.big : of.small;
  const T sigma_minus_z = positive ? of.small : of.big;
  const T negative_weight = T(1) - y;
  const T positive_weight = pw * y;
  const T sw = scale * w;
  return {sw * (weighted(negative_weight, softplus_z) + weighted(positive_weight, softplus_minus_z)),
          sw * (negative_weight * sigma_z - positive_weight * sigma_minus_z),
          sw * (negative_weight + positive_weight) * (of.big * of.small)};
}

}  // namespace chaos_ext
