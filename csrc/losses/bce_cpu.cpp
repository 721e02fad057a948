// bce_with_logits on the CPU. Formulas: bce.h. Parallel over blocks of elements; the loss adds the blocks in order
// in float64, so it does not depend on the thread count.

#include <torch/csrc/stable/library.h>

#include "../common/sum_cpu.h"
#include "bce.h"
#include "bce_math.h"

namespace chaos_ext {
namespace {

constexpr int64_t kBlock = 4096;

std::tuple<Tensor, Tensor, Tensor> bce_with_logits_cpu(const Tensor& z,   // [N, O]
                                                       const Tensor& y,   // as z
                                                       const Tensor& w,   // as z, or [0]
                                                       const Tensor& pw,  // as z, or [0]
                                                       double scale) {
  const BceOutputs out = prepare_bce(z, y, w, pw);
  dispatch_floating(z, [&](auto zero) {
    using T = decltype(zero);
    const T *zp = data<T>(z), *yp = data<T>(y);
    const T* wp = w.numel() == 0 ? nullptr : data<T>(w);
    const T* pwp = pw.numel() == 0 ? nullptr : data<T>(pw);
    T *delta = mutable_data<T>(out.delta), *curvature = mutable_data<T>(out.curvature);
    const double loss = blocked_sum(z.numel(), kBlock, [&](int64_t begin, int64_t end) {
      double sum = 0.0;
      for (int64_t i = begin; i < end; ++i) {
        const T wi = wp == nullptr ? T(1) : wp[i], pwi = pwp == nullptr ? T(1) : pwp[i];
        const BceValues<T> v = bce_values(zp[i], yp[i], wi, pwi, static_cast<T>(scale));
        sum += v.loss;
        delta[i] = v.delta;
        curvature[i] = v.curvature;
      }
      return sum;
    });
    *mutable_data<T>(out.loss) = static_cast<T>(loss);
  });
  return out.tuple();
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CPU, m) { m.impl("bce_with_logits", TORCH_BOX(&chaos_ext::bce_with_logits_cpu)); }
