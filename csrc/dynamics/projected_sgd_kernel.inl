// The inner loops of projected_sgd_; compiled once per instruction set and dtype (../common/foreach_target.inl).

using T = CE_SCALAR;

// lr[x] = sum_r L[r] R[r, x] for x < size, R with row stride I; four rows of R a pass over lr.
void product_row(const T* L, const T* R, int64_t q, int64_t I, int64_t size, T* __restrict lr) {
  std::fill(lr, lr + size, T(0));
  int64_t r = 0;
  for (; r + 4 <= q; r += 4, R += 4 * I) {
    const T a = L[r], b = L[r + 1], c = L[r + 2], d = L[r + 3];
    const T *R1 = R + I, *R2 = R + 2 * I, *R3 = R + 3 * I;
    for (int64_t x = 0; x < size; ++x) lr[x] = lr[x] + a * R[x] + b * R1[x] + c * R2[x] + d * R3[x];
  }
  for (; r < q; ++r, R += I) {
    for (int64_t x = 0; x < size; ++x) lr[x] += L[r] * R[x];
  }
}

// One chunk of a row of the parameter: theta, grad, buf (or null) from `at` on.
void chunk(const SgdOptions<T>& options, const T* L, const T* R, int64_t q, int64_t I, int64_t size,
           const T* __restrict grad, T* __restrict theta, T* __restrict buf) {
  T product[kChunk];
  product_row(L, R, q, I, size, product);
  const SgdOptions<T> o = options;
  if (buf == nullptr) {
    for (int64_t x = 0; x < size; ++x) sgd_step(o, grad[x] - product[x], theta + x, static_cast<T*>(nullptr));
  } else {
    for (int64_t x = 0; x < size; ++x) sgd_step(o, grad[x] - product[x], theta + x, buf + x);
  }
}

const SgdKernels<T> kernels{chunk};
