// Launcher of conv_lanes.cuh.

#include <torch/csrc/stable/library.h>

#include "../common/launch.cuh"
#include "conv_lanes.cuh"
#include "conv_lanes.h"

namespace chaos_ext {
namespace {

template <int kKind, typename T>
void launch(const ConvShape& s, const Tensor& out, const Tensor& scalars, const Tensor& lanes, bool accumulate,
            const CudaScope& scope) {
  conv_lanes_kernel<kKind, T><<<grid_size(out.numel(), kThreads), kThreads, 0, scope.stream()>>>(
      data<T>(scalars), data<T>(lanes), s, out.numel() / s.k, accumulate, mutable_data<T>(out));
  check_launch();
}

void conv_lanes_cuda(Tensor& out,            // [.., k]
                     const Tensor& scalars,  // four axes
                     const Tensor& lanes,    // [.., k]
                     int64_t kind, IntHeaderOnlyArrayRef stride, IntHeaderOnlyArrayRef padding,
                     IntHeaderOnlyArrayRef dilation, int64_t groups, bool accumulate) {
  const ConvShape s = check_conv_lanes(out, scalars, lanes, kind, stride, padding, dilation, groups);
  if (out.numel() == 0) return;
  const CudaScope scope(out);
  dispatch_floating(out, [&](auto zero) {
    using T = decltype(zero);
    switch (kind) {
      case 0: return launch<0, T>(s, out, scalars, lanes, accumulate, scope);
      case 1: return launch<1, T>(s, out, scalars, lanes, accumulate, scope);
      case 2: return launch<2, T>(s, out, scalars, lanes, accumulate, scope);
      case 3: return launch<3, T>(s, out, scalars, lanes, accumulate, scope);
      case 4: return launch<4, T>(s, out, scalars, lanes, accumulate, scope);
      case 5: return launch<5, T>(s, out, scalars, lanes, accumulate, scope);
    }
  });
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CUDA, m) { m.impl("conv_lanes_", TORCH_BOX(&chaos_ext::conv_lanes_cuda)); }
