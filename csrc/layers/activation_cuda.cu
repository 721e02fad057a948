// Launcher of activation.cuh.

#include <torch/csrc/stable/library.h>

#include "../common/launch.cuh"
#include "activation.cuh"
#include "activation.h"

namespace chaos_ext {
namespace {

template <Activation kind, typename T>
void launch_activation(const Tensor& z, double alpha, double beta, const ActivationOutputs& out, cudaStream_t stream) {
  const int64_t n = z.numel();
  activation_kernel<kind, T><<<grid_size(n, kThreads), kThreads, 0, stream>>>(
      data<T>(z), n, static_cast<T>(alpha), static_cast<T>(beta), mutable_data<T>(out.a), mutable_data<T>(out.d1),
      mutable_data<T>(out.d2));
  check_launch();
}

std::tuple<Tensor, Tensor, Tensor> activation_cuda(const Tensor& z,  // any shape
                                                   int64_t kind, double alpha, double beta) {
  const ActivationOutputs out = prepare_activation(z, kind);
  if (z.numel() == 0) return out.tuple();
  const CudaScope scope(z);
  dispatch_floating(z, [&](auto zero) {
    using T = decltype(zero);
    dispatch_activation(static_cast<Activation>(kind), [&](auto tag) {
      launch_activation<decltype(tag)::value, T>(z, alpha, beta, out, scope.stream());
    });
  });
  return out.tuple();
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CUDA, m) { m.impl("activation", TORCH_BOX(&chaos_ext::activation_cuda)); }
