// Host side of a kernel launch: device guard, torch's current stream, grid size, launch check. For the .cu launchers
// only; the kernels in .cuh files know nothing of torch.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>

#include "checks.h"

namespace chaos_ext {

constexpr int kThreads = 256;

// Makes t's device current for its lifetime and holds torch's current stream there.
class CudaScope {
 public:
  explicit CudaScope(const Tensor& t) : guard_(t.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// Blocks for n items, `per_block` each; kernels loop with a grid stride, so the cap costs nothing.
inline unsigned grid_size(int64_t n, int64_t per_block) {
  const int64_t blocks = (n + per_block - 1) / per_block;
  return static_cast<unsigned>(std::max<int64_t>(1, std::min<int64_t>(blocks, 0x7fffffff)));
}

inline void check_launch() { STD_CUDA_KERNEL_LAUNCH_CHECK(); }

// Not through torch, which would ask for a derivative.
inline void fill_zeros(const Tensor& t, const CudaScope& scope) {
  const size_t bytes = t.numel() * t.element_size();
  if (bytes > 0) STD_CUDA_CHECK(cudaMemsetAsync(t.mutable_data_ptr(), 0, bytes, scope.stream()));
}

// Scratch for the partial sums of a reduction over blocks.
inline Tensor partial_sums(const Tensor& like, int64_t blocks) {
  const int64_t shape[1] = {blocks};
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape, 1), ScalarType::Double);
}

}  // namespace chaos_ext
