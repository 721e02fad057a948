// Squared error of one number, shared by CPU and CUDA; see mse.h.
#pragma once

#include "../common/host_device.h"

namespace chaos_ext {

// The difference, formed once for loss and gradient; shared by CPU and CUDA.
template <typename T>
struct MseValues {
  T square;  // (z - y)^2
  T delta;
};

template <typename T>
CHAOS_EXT_HD MseValues<T> mse_values(T z, T y, T scale) {
  const T r = z - y;
  return {r * r, T(2) * scale * r};
}

}  // namespace chaos_ext
