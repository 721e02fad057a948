// torch's SGD recurrence for one parameter, shared by CPU and CUDA; see projected_sgd.h.
#pragma once

#include "../common/host_device.h"

namespace chaos_ext {

template <typename T>
struct SgdOptions {
  T lr, momentum, dampening, weight_decay;
  bool nesterov, maximize;
  bool first;  // the buffer holds uninitialised memory and is only written

  template <typename U>
  SgdOptions<U> cast() const {
    return {static_cast<U>(lr),
            static_cast<U>(momentum),
            static_cast<U>(dampening),
            static_cast<U>(weight_decay),
            nesterov,
            maximize,
            first};
  }
};

// theta and *buf (or null) are updated along the projected gradient d.
template <typename T>
CHAOS_EXT_HD void sgd_step(const SgdOptions<T>& o, T d, T* theta, T* buf) {
  if (o.maximize) d = -d;
  if (o.weight_decay != T(0)) d += o.weight_decay * *theta;
  if (buf != nullptr) {
    const T b = o.first ? d : o.momentum * *buf + (T(1) - o.dampening) * d;
    *buf = b;
    d = o.nesterov ? d + o.momentum * b : b;
  }
  *theta -= o.lr * d;
}

}  // namespace chaos_ext
