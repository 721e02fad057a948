// Launcher of projected_sgd.cuh.

#include <torch/csrc/stable/library.h>

#include "../common/launch.cuh"
#include "projected_sgd.cuh"
#include "projected_sgd.h"

namespace chaos_ext {
namespace {

void projected_sgd_cuda(Tensor& param,                     // any shape, viewed as [O, I]
                        const Tensor& grad,                // as param
                        const Tensor& L,                   // [O, q]
                        const Tensor& R,                   // [q, I]
                        const std::optional<Tensor>& buf,  // as param
                        bool first, double lr, double momentum, double dampening, double weight_decay, bool nesterov,
                        bool maximize) {
  const SgdOptions<double> options{lr, momentum, dampening, weight_decay, nesterov, maximize, first};
  check_projected_sgd(param, grad, L, R, buf, options);
  const int64_t n = param.numel();
  if (n == 0) return;
  const CudaScope scope(param);
  dispatch_floating(param, [&](auto zero) {
    using T = decltype(zero);
    projected_sgd_kernel<T><<<grid_size(n, kThreads), kThreads, 0, scope.stream()>>>(
        mutable_data<T>(param), data<T>(grad), data<T>(L), data<T>(R), buf ? mutable_data<T>(*buf) : nullptr,
        options.cast<T>(), L.size(0), L.size(1), R.size(1));
    check_launch();
  });
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CUDA, m) { m.impl("projected_sgd_", TORCH_BOX(&chaos_ext::projected_sgd_cuda)); }
