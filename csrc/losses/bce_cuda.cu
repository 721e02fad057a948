// Launcher of bce.cuh.

#include <torch/csrc/stable/library.h>

#include "../common/launch.cuh"
#include "bce.cuh"
#include "bce.h"

namespace chaos_ext {
namespace {

constexpr int64_t kPerBlock = 4 * kThreads;

std::tuple<Tensor, Tensor, Tensor> bce_with_logits_cuda(const Tensor& z,   // [N, O]
                                                        const Tensor& y,   // as z
                                                        const Tensor& w,   // as z, or [0]
                                                        const Tensor& pw,  // as z, or [0]
                                                        double scale) {
  const BceOutputs out = prepare_bce(z, y, w, pw);
  const int64_t n = z.numel();
  const unsigned blocks = grid_size(n, kPerBlock);
  const CudaScope scope(z);
  const Tensor partial = partial_sums(z, blocks);
  dispatch_floating(z, [&](auto zero) {
    using T = decltype(zero);
    const T* wp = w.numel() == 0 ? nullptr : data<T>(w);
    const T* pwp = pw.numel() == 0 ? nullptr : data<T>(pw);
    double* sums = mutable_data<double>(partial);
    bce_kernel<T><<<blocks, kThreads, 0, scope.stream()>>>(data<T>(z), data<T>(y), wp, pwp, static_cast<T>(scale), n,
                                                           mutable_data<T>(out.delta), mutable_data<T>(out.curvature),
                                                           sums);
    check_launch();
    sum_partials_kernel<T><<<1, kThreads, 0, scope.stream()>>>(sums, blocks, 1.0, mutable_data<T>(out.loss));
    check_launch();
  });
  return out.tuple();
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CUDA, m) {
  m.impl("bce_with_logits", TORCH_BOX(&chaos_ext::bce_with_logits_cuda));
}
