// The inner loop of tridiagonal_apply; compiled once per instruction set and dtype (../common/foreach_target.inl).

using T = CE_SCALAR;

// x -= 2 v (v.x) / (v.v), in float64.
void reflect(const T* v, int64_t size, double* x) {
  double vx[kBlock] = {}, vv[kBlock] = {};
  for (int64_t at = 0; at < size; at += kBlock) {
    for (int64_t y = 0; y < kBlock; ++y) {
      const double value = v[at + y];
      vx[y] += value * x[at + y];
      vv[y] += value * value;
    }
  }
  double product = 0, square = 0;
  for (int64_t y = 0; y < kBlock; ++y) {
    product += vx[y];
    square += vv[y];
  }
  if (square == 0) return;
  const double factor = 2 * product / square;
  for (int64_t at = 0; at < size; ++at) x[at] -= factor * v[at];
}

const ApplyKernels<T> kernels{reflect};
