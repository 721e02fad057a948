// activation on the CPU. Formulas: activation_math.h. Parallel over elements; vectorised for the instruction set found
// at run time.

#include <torch/csrc/stable/library.h>

#include "../common/cpu_target.h"
#include "activation.h"

namespace chaos_ext {
namespace {

constexpr int64_t kGrain = 8192;  // elements per thread below which threads cost more than they save

template <typename T>
struct ActivationKernels {
  void (*range)(Activation kind, const T* z, T alpha, T beta, T* a, T* d1, T* d2, int64_t size);
};

#define CE_FILE "../layers/activation_kernel.inl"
#include "../common/foreach_target.inl"

const ActivationKernels<float>& kernels_for(float) { return CE_CHOOSE(float, kernels); }
const ActivationKernels<double>& kernels_for(double) { return CE_CHOOSE(double, kernels); }

std::tuple<Tensor, Tensor, Tensor> activation_cpu(const Tensor& z,  // any shape
                                                  int64_t kind, double alpha, double beta) {
  const ActivationOutputs out = prepare_activation(z, kind);
  const int64_t n = z.numel();
  if (n == 0) return out.tuple();
  dispatch_floating(z, [&](auto zero) {
    using T = decltype(zero);
    const T *zp = data<T>(z), ta = static_cast<T>(alpha), tb = static_cast<T>(beta);
    T *a = mutable_data<T>(out.a), *d1 = mutable_data<T>(out.d1);
    T* d2 = out.d2.numel() == 0 ? nullptr : mutable_data<T>(out.d2);
    torch::stable::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
      kernels_for(T{}).range(static_cast<Activation>(kind), zp + begin, ta, tb, a + begin, d1 + begin,
                             d2 == nullptr ? nullptr : d2 + begin, end - begin);
    });
  });
  return out.tuple();
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CPU, m) { m.impl("activation", TORCH_BOX(&chaos_ext::activation_cpu)); }
