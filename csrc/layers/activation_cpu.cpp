// activation on the CPU. Formulas: activation_math.h. Parallel over elements.

#include <torch/csrc/stable/library.h>

#include "activation.h"

namespace chaos_ext {
namespace {

constexpr int64_t kGrain = 4096;  // elements per thread below which threads cost more than they save

template <Activation kind, typename T>
void activation_range(const T* z, T alpha, T beta, T* a, T* d1, T* d2, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const ActivationValues<T> v = activation_values<kind>(z[i], alpha, beta);
    a[i] = v.a;
    d1[i] = v.d1;
    if constexpr (!is_piecewise_linear(kind)) d2[i] = v.d2;
  }
}

std::tuple<Tensor, Tensor, Tensor> activation_cpu(const Tensor& z,  // any shape
                                                  int64_t kind, double alpha, double beta) {
  const ActivationOutputs out = prepare_activation(z, kind);
  const int64_t n = z.numel();
  if (n == 0) return out.tuple();
  dispatch_floating(z, [&](auto zero) {
    using T = decltype(zero);
    const T *zp = data<T>(z), ta = static_cast<T>(alpha), tb = static_cast<T>(beta);
    T *a = mutable_data<T>(out.a), *d1 = mutable_data<T>(out.d1), *d2 = mutable_data<T>(out.d2);
    dispatch_activation(static_cast<Activation>(kind), [&](auto tag) {
      torch::stable::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
        activation_range<decltype(tag)::value>(zp, ta, tb, a, d1, d2, begin, end);
      });
    });
  });
  return out.tuple();
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CPU, m) { m.impl("activation", TORCH_BOX(&chaos_ext::activation_cpu)); }
