// The loop of activation over elements; compiled once per instruction set and dtype (../common/foreach_target.inl).

using T = CE_SCALAR;

template <Activation kind>
inline __attribute__((always_inline)) void loop(const T* __restrict z, T alpha, T beta, T* __restrict a,
                                                T* __restrict d1, T* __restrict d2, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const ActivationValues<T> v = activation_values<kind>(z[i], alpha, beta);
    a[i] = v.a;
    d1[i] = v.d1;
    if constexpr (!is_piecewise_linear(kind)) d2[i] = v.d2;
  }
}

void range(Activation kind, const T* z, T alpha, T beta, T* a, T* d1, T* d2, int64_t size) {
  switch (kind) {
    case Activation::kRelu: return loop<Activation::kRelu>(z, alpha, beta, a, d1, d2, size);
    case Activation::kLeakyRelu: return loop<Activation::kLeakyRelu>(z, alpha, beta, a, d1, d2, size);
    case Activation::kElu: return loop<Activation::kElu>(z, alpha, beta, a, d1, d2, size);
    case Activation::kSelu: return loop<Activation::kSelu>(z, alpha, beta, a, d1, d2, size);
    case Activation::kCelu: return loop<Activation::kCelu>(z, alpha, beta, a, d1, d2, size);
    case Activation::kSigmoid: return loop<Activation::kSigmoid>(z, alpha, beta, a, d1, d2, size);
    case Activation::kTanh: return loop<Activation::kTanh>(z, alpha, beta, a, d1, d2, size);
    case Activation::kSoftplus: return loop<Activation::kSoftplus>(z, alpha, beta, a, d1, d2, size);
    case Activation::kSilu: return loop<Activation::kSilu>(z, alpha, beta, a, d1, d2, size);
    case Activation::kGeluErf: return loop<Activation::kGeluErf>(z, alpha, beta, a, d1, d2, size);
    case Activation::kGeluTanh: return loop<Activation::kGeluTanh>(z, alpha, beta, a, d1, d2, size);
    case Activation::kHardtanh: return loop<Activation::kHardtanh>(z, alpha, beta, a, d1, d2, size);
    case Activation::kCount: return;
  }
}

const ActivationKernels<T> kernels{range};
