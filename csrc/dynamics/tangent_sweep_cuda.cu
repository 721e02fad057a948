// Launchers of tangent_sweep.cuh.

#include <torch/csrc/stable/library.h>

#include <optional>

#include "../common/launch.cuh"
#include "tangent_sweep.cuh"
#include "tangent_sweep.h"

namespace chaos_ext {
namespace {

constexpr int kSweepThreads = 512;  // a multiprocessor may hold one block only
constexpr int kWidest = 32;         // columns of a thread block: a warp reads one run
constexpr int kNarrowest = 8;       // 32 bytes, the unit of a memory transaction

int max_shared_bytes() {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes;
}

// How a sweep uses shared memory.
struct SharedPlan {
  int w;
  bool keeps_theta, in_shared;
  int64_t bytes, scratch_rows;
};

// Theta's columns and the tangents if they fit at any width, else the tangents alone, else neither.
SharedPlan plan_shared(int64_t P, int64_t tangent_rows, int64_t item) {
  const int64_t limit = max_shared_bytes();
  for (const bool keeps_theta : {true, false}) {
    for (int w = keeps_theta ? kWidest / 2 : kWidest; w >= kNarrowest; w /= 2) {
      const int64_t rows = std::max<int64_t>(tangent_rows, kSweepThreads / w);
      const int64_t bytes = (rows + (keeps_theta ? P : 0)) * w * item;
      if (bytes <= limit) return {w, keeps_theta, true, bytes, rows};
    }
  }
  return {kWidest, false, false, 0, std::max<int64_t>(tangent_rows, kSweepThreads / kWidest)};
}

template <typename T>
void launch_sweep(const TangentProgram<T>& program, const UpdateList<T>& slots, const Tensor& Y, int64_t P,
                  const Tensor* out, const Tensor* squares, const CudaScope& scope) {
  const int64_t k = Y.size(1);
  const SharedPlan plan = plan_shared(P, program.scratch_rows, sizeof(T));
  const unsigned blocks = grid_size(k, plan.w);
  const auto kernel = has_norms(program) ? tangent_sweep_kernel<T, true> : tangent_sweep_kernel<T, false>;
  STD_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.bytes)));
  const Tensor scratch = new_empty(Y, {plan.in_shared ? 0 : static_cast<int64_t>(blocks) * plan.scratch_rows * plan.w});
  kernel<<<blocks, kSweepThreads, plan.bytes, scope.stream()>>>(
      program, slots, const_cast<T*>(data<T>(Y)), row_stride(Y), P, k, plan.w,
      out == nullptr ? nullptr : mutable_data<T>(*out), plan.in_shared ? nullptr : mutable_data<T>(scratch),
      plan.scratch_rows, plan.keeps_theta, squares == nullptr ? nullptr : mutable_data<T>(*squares));
  check_launch();
}

Tensor tangent_product_cuda(const Tensor& Y,                     // [P, k]
                            const std::vector<Tensor> operands,  // of the nodes
                            const std::vector<int64_t> values, const std::vector<int64_t> nodes,
                            const std::vector<double> factors) {
  const char* op = "tangent_product";
  check_sweep(op, reads("Y", Y), std::nullopt, operands, {});
  const CudaScope scope(Y);
  const Tensor out = new_empty(Y, {Y.size(0), Y.size(1)});
  dispatch_floating(Y, [&](auto zero) {
    using T = decltype(zero);
    const SweepLists<T> lists = sweep_lists<T>(op, Y, operands, values, nodes, factors);
    const ProgramBuilder<T> builder(op, Y.size(0), lists);
    const UpdateList<T> slots = product_list(builder.program(), Y.size(0));
    if (out.numel() != 0) launch_sweep<T>(builder.program(), slots, Y, Y.size(0), &out, nullptr, scope);
  });
  return out;
}

template <typename T>
Tensor launch_update(const std::vector<UpdateSlot<T>>& slots, const Tensor& Y, const Tensor& HY,
                     const CudaScope& scope) {
  const int64_t k = Y.size(1), launches = (static_cast<int64_t>(slots.size()) + kMaxSlots - 1) / kMaxSlots;
  const Tensor squares = new_empty(Y, {launches * kUpdateChunks, k});
  for (int64_t n = 0; n < launches; ++n) {
    const UpdateList<T> list = part_of(slots, n * kMaxSlots);
    const dim3 grid(grid_size(k, kWidest), kUpdateChunks);
    tangent_update_kernel<T><<<grid, kThreads, kThreads * sizeof(T), scope.stream()>>>(
        list, mutable_data<T>(Y), row_stride(Y), data<T>(HY), row_stride(HY), k, kWidest,
        mutable_data<T>(squares) + n * kUpdateChunks * k);
    check_launch();
  }
  return squares;
}

Tensor tangent_update_cuda(Tensor& Y,                           // [S, k]
                           const std::optional<Tensor>& HY,     // [P, k]
                           const std::vector<Tensor> operands,  // of the nodes
                           const std::vector<int64_t> values, const std::vector<int64_t> nodes,
                           const std::vector<double> factors, const std::vector<Tensor> vectors,
                           const std::vector<int64_t> slots, const std::vector<double> coefficients) {
  const char* op = "tangent_update_";
  check_sweep(op, writes("Y", Y), HY, operands, vectors);
  const CudaScope scope(Y);
  Tensor squares = new_empty(Y, {1, Y.size(1)});
  dispatch_floating(Y, [&](auto zero) {
    using T = decltype(zero);
    const std::vector<UpdateSlot<T>> own = read_slots<T>(Y.size(0), update_lists<T>(Y, vectors, slots, coefficients));
    const SweepLists<T> lists = sweep_lists<T>(op, Y, operands, values, nodes, factors);
    const ProgramBuilder<T> builder(op, Y.size(0), lists);
    if (HY) check_given(*HY, Y, own, builder.program().count);
    const UpdateList<T> list = HY ? UpdateList<T>{} : update_list(own, builder.program());
    if (Y.size(1) == 0) return;
    if (HY) {
      squares = launch_update(own, Y, *HY, scope);
    } else {
      launch_sweep<T>(builder.program(), list, Y, rows_of(list), nullptr, &squares, scope);
    }
  });
  return squares;
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CUDA, m) {
  m.impl("tangent_product", TORCH_BOX(&chaos_ext::tangent_product_cuda));
  m.impl("tangent_update_", TORCH_BOX(&chaos_ext::tangent_update_cuda));
}
