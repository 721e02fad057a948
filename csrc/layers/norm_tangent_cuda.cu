// Launchers of norm_tangent.cuh.

#include <torch/csrc/stable/library.h>

#include "../common/launch.cuh"
#include "norm_tangent.cuh"
#include "norm_tangent.h"

namespace chaos_ext {
namespace {

template <bool kBackward, typename T>
void launch(const NormProblem<T>& q, const Tensor& out) {
  const CudaScope scope(out);
  const int64_t tasks = q.s.G * ((q.s.k + kNormColumns - 1) / kNormColumns);
  norm_tangent_kernel<kBackward, T><<<grid_size(tasks, 1), dim3(kNormColumns, kNormRows), 0, scope.stream()>>>(q);
  check_launch();
}

void norm_tangent_cuda(Tensor& out,                           // [B, G, M, k]
                       const Tensor& xh,                      // [B, G, M]
                       const Tensor& r,                       // [G]
                       const std::optional<Tensor>& d,        // as out
                       const std::optional<Tensor>& gamma,    // [G]
                       const std::optional<Tensor>& dgamma,   // [G, k]
                       const std::optional<Tensor>& dbeta) {  // [G, k]
  const NormArguments arguments{"norm_tangent_", out, xh, r, d, gamma, dgamma};
  check_floating(arguments.op, "out", out);
  dispatch_floating(out, [&](auto zero) {
    const auto q = norm_forward_problem<decltype(zero)>(arguments, dbeta);
    if (out.numel() > 0) launch<false>(q, out);
  });
}

void norm_tangent_backward_cuda(Tensor& out,                            // [B, G, M, k]
                                Tensor& dweight,                        // [G, k]
                                Tensor& dbias,                          // [G, k]
                                const Tensor& xh,                       // [B, G, M]
                                const Tensor& r,                        // [G]
                                const Tensor& delta,                    // as xh
                                const std::optional<Tensor>& d,         // as out
                                const std::optional<Tensor>& ddelta,    // as out
                                const std::optional<Tensor>& gamma,     // [G]
                                const std::optional<Tensor>& dgamma) {  // [G, k]
  const NormArguments arguments{"norm_tangent_backward_", out, xh, r, d, gamma, dgamma};
  check_floating(arguments.op, "out", out);
  dispatch_floating(out, [&](auto zero) {
    const auto q = norm_backward_problem<decltype(zero)>(arguments, dweight, dbias, ddelta, delta);
    if (out.numel() > 0) return launch<true>(q, out);
    const CudaScope scope(out);
    fill_zeros(dweight, scope);
    fill_zeros(dbias, scope);
  });
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CUDA, m) {
  m.impl("norm_tangent_", TORCH_BOX(&chaos_ext::norm_tangent_cuda));
  m.impl("norm_tangent_backward_", TORCH_BOX(&chaos_ext::norm_tangent_backward_cuda));
}
