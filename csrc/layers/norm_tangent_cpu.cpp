// norm_tangent_ and norm_tangent_backward_ on the CPU. Formulas: norm_tangent.h. Parallel over (group, panel of
// columns): every sum is made by one thread, in one order.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>

#include "../common/cpu_target.h"
#include "norm_tangent.h"

namespace chaos_ext {
namespace {

constexpr int64_t kTaskWork = 1 << 17;  // entries times columns that are worth a thread

template <typename T>
struct NormKernels {
  void (*group_panel)(const NormProblem<T>& q, int64_t g, int64_t x0, int64_t x1);
  int64_t panel, vector;  // columns of a task, numbers of a vector
};

#define CE_FILE "../layers/norm_tangent_kernel.inl"
#include "../common/foreach_target.inl"

const NormKernels<float>& kernels_for(float) { return CE_CHOOSE(float, kernels); }
const NormKernels<double>& kernels_for(double) { return CE_CHOOSE(double, kernels); }

template <typename T>
void run(const NormProblem<T>& q) {
  const NormKernels<T>& kernels = kernels_for(T{});
  // None is narrower than a vector: what is left of the columns goes with the vector before.
  const int64_t panels = std::max<int64_t>(1, q.s.k / kernels.panel + (q.s.k % kernels.panel >= kernels.vector));
  const int64_t grain = std::max<int64_t>(1, kTaskWork / (q.s.count() * std::min(q.s.k, kernels.panel)));
  torch::stable::parallel_for(0, q.s.G * panels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t own = task % panels;
      const int64_t end_column = own + 1 == panels ? q.s.k : (own + 1) * kernels.panel;
      kernels.group_panel(q, task / panels, own * kernels.panel, end_column);
    }
  });
}

void norm_tangent_cpu(Tensor& out,                           // [B, G, M, k]
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
    if (out.numel() > 0) run(q);
  });
}

void norm_tangent_backward_cpu(Tensor& out,                            // [B, G, M, k]
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
    if (out.numel() > 0) return run(q);
    fill_zeros(dweight);
    fill_zeros(dbias);
  });
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CPU, m) {
  m.impl("norm_tangent_", TORCH_BOX(&chaos_ext::norm_tangent_cpu));
  m.impl("norm_tangent_backward_", TORCH_BOX(&chaos_ext::norm_tangent_backward_cpu));
}
