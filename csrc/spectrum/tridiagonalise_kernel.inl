// The inner loops of tridiagonalise; compiled once per instruction set and dtype (../common/foreach_target.inl).
//
// Everything is whole blocks of kBlock: vectors are zero beyond the matrix, diagonal blocks are stored in full.

#define CE_INLINE inline __attribute__((always_inline))

using T = CE_SCALAR;
typedef T Vec __attribute__((vector_size(CE_VECTOR_BYTES)));
typedef T Loose __attribute__((vector_size(CE_VECTOR_BYTES), aligned(sizeof(T)), may_alias));

constexpr int64_t kLanes = CE_VECTOR_BYTES / sizeof(T);
constexpr int64_t kRows = CE_PANEL_VECTORS == 4 ? 8 : 4;  // rows of a register tile
constexpr int64_t kWide = 2 * kLanes <= kBlock ? 2 : 1;   // its vectors

CE_INLINE Vec load(const T* p) { return *reinterpret_cast<const Loose*>(p); }
CE_INLINE void store(T* p, Vec v) { *reinterpret_cast<Loose*>(p) = v; }

CE_INLINE T sum(Vec v) {
  T total = 0;
  for (int64_t x = 0; x < kLanes; ++x) total += v[x];
  return total;
}

// ---- y = A v -------------------------------------------------------------------------------------------------------

// kRows rows of A: y[r] += A[r, :] v up to the end of the diagonal block, y[c] += sum_r A[r, c] v[r] before it.
CE_INLINE void symmetric_rows(const T* A, int64_t ld, int64_t before, const T* v, const T* v_rows, T* y, T* y_rows) {
  Vec dot[kRows], factor[kRows];
  for (int64_t r = 0; r < kRows; ++r) {
    dot[r] = Vec{};
    factor[r] = Vec{} + v_rows[r];
  }
  for (int64_t c = 0; c < before; c += kLanes) {
    const Vec vc = load(v + c);
    Vec even = load(y + c), odd{};
    for (int64_t r = 0; r < kRows; r += 2) {
      const Vec a = load(A + r * ld + c), b = load(A + (r + 1) * ld + c);
      dot[r] += a * vc;
      dot[r + 1] += b * vc;
      even += a * factor[r];
      odd += b * factor[r + 1];
    }
    store(y + c, even + odd);
  }
  for (int64_t c = before; c < before + kBlock; c += kLanes) {
    const Vec vc = load(v + c);
    for (int64_t r = 0; r < kRows; ++r) dot[r] += load(A + r * ld + c) * vc;
  }
  for (int64_t r = 0; r < kRows; ++r) y_rows[r] += sum(dot[r]);
}

// The part of y = A v that the blocks of rows first, first + step, ... of the leading [size, size] block make up.
void symmetric_product(const T* A, int64_t ld, int64_t size, int64_t first, int64_t step, const T* v, T* y) {
  std::fill(y, y + padded_rows(size), T(0));
  for (int64_t r0 = first * kBlock; r0 < size; r0 += step * kBlock) {
    for (int64_t r = r0; r < r0 + kBlock; r += kRows) symmetric_rows(A + r * ld, ld, r0, v, v + r, y, y + r);
  }
}

// ---- A -= V W^T + W V^T
// ----------------------------------------------------------------------------------------------

CE_INLINE void update_tile(T* A, int64_t ld, const T* left, const T* panel, int64_t depth) {
  Vec acc[kRows][kWide];
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t x = 0; x < kWide; ++x) acc[r][x] = load(A + r * ld + x * kLanes);
  }
  for (int64_t k = 0; k < depth; ++k, panel += ld) {
    Vec column[kWide];
    for (int64_t x = 0; x < kWide; ++x) column[x] = load(panel + x * kLanes);
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t x = 0; x < kWide; ++x) acc[r][x] -= left[r * depth + k] * column[x];
    }
  }
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t x = 0; x < kWide; ++x) store(A + r * ld + x * kLanes, acc[r][x]);
  }
}

// The same blocks of rows of A -= left panel; left [.., depth], panel [depth, ld].
void update(T* A, int64_t ld, int64_t size, int64_t first, int64_t step, const T* left, const T* panel, int64_t depth) {
  for (int64_t r0 = first * kBlock; r0 < size; r0 += step * kBlock) {
    for (int64_t c = 0; c < r0 + kBlock; c += kWide * kLanes) {
      for (int64_t r = r0; r < r0 + kBlock; r += kRows) {
        update_tile(A + r * ld + c, ld, left + r * depth, panel + c, depth);
      }
    }
  }
}

// ---- vectors of length size, padded to whole blocks
// ------------------------------------------------------------------

// y -= sum_k c[k] panel[k], k < depth.
void subtract(const T* c, const T* panel, int64_t ld, int64_t depth, int64_t size, T* y) {
  for (int64_t x = 0; x < size; x += kBlock) {
    Vec acc[kBlock / kLanes];
    for (int64_t b = 0; b < kBlock / kLanes; ++b) acc[b] = load(y + x + b * kLanes);
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t b = 0; b < kBlock / kLanes; ++b) acc[b] -= c[k] * load(panel + k * ld + x + b * kLanes);
    }
    for (int64_t b = 0; b < kBlock / kLanes; ++b) store(y + x + b * kLanes, acc[b]);
  }
}

// out[k] = panel[k] . v, k < depth.
void products(const T* panel, int64_t ld, int64_t depth, int64_t size, const T* v, T* out) {
  for (int64_t k = 0; k < depth; ++k, panel += ld) {
    Vec acc[kBlock / kLanes];
    for (Vec& a : acc) a = Vec{};
    for (int64_t x = 0; x < size; x += kBlock) {
      for (int64_t b = 0; b < kBlock / kLanes; ++b) acc[b] += load(panel + x + b * kLanes) * load(v + x + b * kLanes);
    }
    for (int64_t b = 1; b < kBlock / kLanes; ++b) acc[0] += acc[b];
    out[k] = sum(acc[0]);
  }
}

// a . b in float64.
double product(const T* a, const T* b, int64_t size) {
  double acc[kBlock] = {}, total = 0;
  for (int64_t x = 0; x < size; x += kBlock) {
    for (int64_t y = 0; y < kBlock; ++y) acc[y] += static_cast<double>(a[x + y]) * static_cast<double>(b[x + y]);
  }
  for (const double value : acc) total += value;
  return total;
}

// y += c a.
void add(double c, const T* a, int64_t size, T* y) {
  const T factor = static_cast<T>(c);
  for (int64_t x = 0; x < size; ++x) y[x] += factor * a[x];
}

const TridiagonalKernels<T> kernels{symmetric_product, update, subtract, products, product, add};

#undef CE_INLINE
