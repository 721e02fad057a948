// Launcher of mse.cuh.

#include <torch/csrc/stable/library.h>

#include "../common/launch.cuh"
#include "mse.cuh"
#include "mse.h"

namespace chaos_ext {
namespace {

constexpr int64_t kPerBlock = 4 * kThreads;

std::tuple<Tensor, Tensor> mse_cuda(const Tensor& z,  // any shape
                                    const Tensor& y,  // as z
                                    double scale) {
  const MseOutputs out = prepare_mse(z, y);
  const int64_t n = z.numel();
  const unsigned blocks = grid_size(n, kPerBlock);
  const CudaScope scope(z);
  const Tensor partial = partial_sums(z, blocks);
  dispatch_floating(z, [&](auto zero) {
    using T = decltype(zero);
    double* sums = mutable_data<double>(partial);
    mse_kernel<T><<<blocks, kThreads, 0, scope.stream()>>>(data<T>(z), data<T>(y), static_cast<T>(scale), n,
                                                           mutable_data<T>(out.delta), sums);
    check_launch();
    sum_partials_kernel<T><<<1, kThreads, 0, scope.stream()>>>(sums, blocks, scale, mutable_data<T>(out.loss));
    check_launch();
  });
  return out.tuple();
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CUDA, m) { m.impl("mse", TORCH_BOX(&chaos_ext::mse_cuda)); }
