// projected_sgd_ on the CPU. Formulas: projected_sgd.h. Parallel over the O rows of the parameter, split into chunks
// of kChunk columns whose part of L R lives in an L1 buffer.

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "../common/cpu_target.h"
#include "projected_sgd.h"

namespace chaos_ext {
namespace {

constexpr int64_t kChunk = 256;
constexpr int64_t kWork = 65536;  // multiply-adds a thread should have at least

template <typename T>
struct SgdKernels {
  void (*chunk)(const SgdOptions<T>& options, const T* L, const T* R, int64_t q, int64_t I, int64_t size, const T* grad,
                T* theta, T* buf);
};

#define CE_FILE "../dynamics/projected_sgd_kernel.inl"
#include "../common/foreach_target.inl"

const SgdKernels<float>& kernels_for(float) { return CE_CHOOSE(float, kernels); }
const SgdKernels<double>& kernels_for(double) { return CE_CHOOSE(double, kernels); }

void projected_sgd_cpu(Tensor& param,                     // any shape, viewed as [O, I]
                       const Tensor& grad,                // as param
                       const Tensor& L,                   // [O, q]
                       const Tensor& R,                   // [q, I]
                       const std::optional<Tensor>& buf,  // as param
                       bool first, double lr, double momentum, double dampening, double weight_decay, bool nesterov,
                       bool maximize) {
  const SgdOptions<double> options{lr, momentum, dampening, weight_decay, nesterov, maximize, first};
  check_projected_sgd(param, grad, L, R, buf, options);
  if (param.numel() == 0) return;
  const int64_t O = L.size(0), q = L.size(1), I = R.size(1);
  const int64_t chunks = (I + kChunk - 1) / kChunk;
  const int64_t grain = std::max<int64_t>(1, kWork / (std::min(I, kChunk) * (q + 8)));
  dispatch_floating(param, [&](auto zero) {
    using T = decltype(zero);
    const T *g = data<T>(grad), *Lp = data<T>(L), *Rp = data<T>(R);
    T *theta = mutable_data<T>(param), *b = buf ? mutable_data<T>(*buf) : nullptr;
    const SgdOptions<T> o = options.cast<T>();
    torch::stable::parallel_for(0, O * chunks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t row = task / chunks, x0 = task % chunks * kChunk, at = row * I + x0;
        kernels_for(T{}).chunk(o, Lp + row * q, Rp + x0, q, I, std::min(kChunk, I - x0), g + at, theta + at,
                               b == nullptr ? nullptr : b + at);
      }
    });
  });
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CPU, m) { m.impl("projected_sgd_", TORCH_BOX(&chaos_ext::projected_sgd_cpu)); }
