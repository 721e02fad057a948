// Launcher of block.cuh.

#include <torch/csrc/stable/library.h>

#include "../common/launch.cuh"
#include "block.cuh"
#include "block.h"

namespace chaos_ext {
namespace {

void hessian_block_cuda(Tensor& H,                             // [P, P], row stride >= P
                        const Tensor& a_s,                     // [N, I_s]
                        const std::optional<Tensor>& K,        // [O_s, N, O_t]
                        const std::optional<Tensor>& a_t,      // [N, I_t]
                        const std::optional<Tensor>& delta_t,  // [N, O_t]
                        const std::optional<Tensor>& J,        // [O_s, N, I_t]
                        int64_t row_w, int64_t row_b, int64_t col_w, int64_t col_b, bool same) {
  const ParameterSpan row{row_w, row_b}, col{col_w, col_b};
  const BlockSizes d = check_block(H, a_s, K, a_t, delta_t, J, row, col, same);
  if (is_empty_block(d, row, col)) return;
  const CudaScope scope(H);
  const int64_t tiles = d.O_s * d.O_t * (d.I_s / kBlockTile + 1) * (d.I_t / kBlockTile + 1);
  dispatch_floating(H, [&](auto zero) {
    using T = decltype(zero);
    const BlockProblem<T> problem = block_problem<T>(H, a_s, K, a_t, delta_t, J, d, row, col);
    hessian_block_kernel<T>
        <<<grid_size(tiles, 1), dim3(kBlockTile, kBlockRows), 0, scope.stream()>>>(problem, same, tiles);
    check_launch();
  });
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CUDA, m) { m.impl("hessian_block_", TORCH_BOX(&chaos_ext::hessian_block_cuda)); }
