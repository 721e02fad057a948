// Launchers of cross_entropy.cuh.

#include <torch/csrc/stable/library.h>

#include "../common/launch.cuh"
#include "cross_entropy.cuh"
#include "cross_entropy.h"

namespace chaos_ext {
namespace {

// A warp serves a row of few classes, a full block one of many.
int threads_for(int64_t classes) { return classes <= 128 ? kWarpSize : kThreads; }

std::tuple<Tensor, Tensor, Tensor> cross_entropy_cuda(const Tensor& z,    // [N, C]
                                                      const Tensor& t) {  // [N, C]
  const CrossEntropyOutputs out = prepare_cross_entropy(z, t);
  const int64_t rows = z.size(0), classes = z.size(1);
  const CudaScope scope(z);
  const Tensor row_loss = partial_sums(z, rows);
  dispatch_floating(z, [&](auto zero) {
    using T = decltype(zero);
    double* losses = mutable_data<double>(row_loss);
    if (rows > 0) {
      cross_entropy_kernel<T><<<grid_size(rows, 1), threads_for(classes), 0, scope.stream()>>>(
          data<T>(z), data<T>(t), rows, classes, mutable_data<T>(out.delta), mutable_data<T>(out.p), losses);
      check_launch();
    }
    sum_partials_kernel<T><<<1, kThreads, 0, scope.stream()>>>(losses, rows, 1.0, mutable_data<T>(out.loss));
    check_launch();
  });
  return out.tuple();
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy_labels_cuda(const Tensor& z,  // [N, C]
                                                             const Tensor& y,  // [N]
                                                             double own, double others) {
  const CrossEntropyOutputs out = prepare_cross_entropy_labels(z, y);
  const int64_t rows = z.size(0), classes = z.size(1);
  const CudaScope scope(z);
  const Tensor row_loss = partial_sums(z, rows);
  dispatch_floating(z, [&](auto zero) {
    using T = decltype(zero);
    double* losses = mutable_data<double>(row_loss);
    if (rows > 0) {
      cross_entropy_labels_kernel<T><<<grid_size(rows, 1), threads_for(classes), 0, scope.stream()>>>(
          data<T>(z), data<int64_t>(y), static_cast<T>(own), static_cast<T>(others), rows, classes,
          mutable_data<T>(out.delta), mutable_data<T>(out.p), losses);
      check_launch();
    }
    sum_partials_kernel<T><<<1, kThreads, 0, scope.stream()>>>(losses, rows, 1.0, mutable_data<T>(out.loss));
    check_launch();
  });
  return out.tuple();
}

Tensor cross_entropy_tangent_cuda(const Tensor& p,     // [N, C]
                                  const Tensor& s,     // [N]
                                  const Tensor& dz) {  // [N, C, k]
  const Tensor out = prepare_cross_entropy_tangent(p, s, dz);
  if (dz.numel() == 0) return out;
  const int64_t rows = p.size(0), classes = p.size(1), columns = dz.size(2);
  const CudaScope scope(p);
  dispatch_floating(p, [&](auto zero) {
    using T = decltype(zero);
    cross_entropy_tangent_kernel<T><<<grid_size(columns * rows, kThreads), kThreads, 0, scope.stream()>>>(
        data<T>(p), data<T>(s), data<T>(dz), columns, rows, classes, mutable_data<T>(out));
    check_launch();
  });
  return out;
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CUDA, m) {
  m.impl("cross_entropy", TORCH_BOX(&chaos_ext::cross_entropy_cuda));
  m.impl("cross_entropy_labels", TORCH_BOX(&chaos_ext::cross_entropy_labels_cuda));
  m.impl("cross_entropy_tangent", TORCH_BOX(&chaos_ext::cross_entropy_tangent_cuda));
}
