// mse on the CPU. Formulas: mse.h. Parallel over blocks of elements; the loss adds the blocks in order in float64,
// so it does not depend on the thread count.

#include <torch/csrc/stable/library.h>

#include "../common/sum_cpu.h"
#include "mse.h"
#include "mse_math.h"

namespace chaos_ext {
namespace {

constexpr int64_t kBlock = 4096;

std::tuple<Tensor, Tensor> mse_cpu(const Tensor& z,  // any shape
                                   const Tensor& y,  // as z
                                   double scale) {
  const MseOutputs out = prepare_mse(z, y);
  dispatch_floating(z, [&](auto zero) {
    using T = decltype(zero);
    const T *zp = data<T>(z), *yp = data<T>(y);
    T* delta = mutable_data<T>(out.delta);
    const double sum = blocked_sum(z.numel(), kBlock, [&](int64_t begin, int64_t end) {
      double part = 0.0;
      for (int64_t i = begin; i < end; ++i) {
        const MseValues<T> v = mse_values(zp[i], yp[i], static_cast<T>(scale));
        part += v.square;
        delta[i] = v.delta;
      }
      return part;
    });
    *mutable_data<T>(out.loss) = static_cast<T>(scale * sum);
  });
  return out.tuple();
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CPU, m) { m.impl("mse", TORCH_BOX(&chaos_ext::mse_cpu)); }
