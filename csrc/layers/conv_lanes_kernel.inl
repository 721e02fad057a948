// The arithmetic of conv_lanes_ on the CPU; compiled once per instruction set and dtype, with the CE_ macros of
// ../common/foreach_target.inl.
//
// Everything is one primitive, a product with gathered rows: for M rows of the result and all K = Ko Ki terms,
//
//     C[c_rows[m]][x] (+)= sum_{q < Ko, t < Ki} A[(q a_outer + a_taps[t]) lda + m] B[q b_outer + b_taps[t] + x].
//
// A register tile holds kTileRows rows by CE_PANEL_VECTORS vectors of columns; sums run in the order of (q, t).

#define CE_INLINE inline __attribute__((always_inline))

using T = CE_SCALAR;
typedef T Vec __attribute__((vector_size(CE_VECTOR_BYTES)));
typedef T Loose __attribute__((vector_size(CE_VECTOR_BYTES), aligned(sizeof(T)), may_alias));

constexpr int64_t kLanes = CE_VECTOR_BYTES / sizeof(T);
constexpr int64_t kPanel = CE_PANEL_VECTORS * kLanes;
constexpr int64_t kTileRows = 6;

// R rows from m on, V vectors of columns from x on.
template <int R, int V>
CE_INLINE void tile(const GatheredProduct<T>& g, int64_t m, int64_t x) {
  Vec acc[R][V];
  for (int r = 0; r < R; ++r) {
    const T* c = g.C + g.c_rows[m + r] + x;
    for (int v = 0; v < V; ++v) acc[r][v] = g.accumulate ? *reinterpret_cast<const Loose*>(c + v * kLanes) : Vec{};
  }
  for (int64_t q = 0; q < g.Ko; ++q) {
    const T *A = g.A + q * g.a_outer * g.lda + m, *B = g.B + q * g.b_outer + x;
    for (int64_t t = 0; t < g.Ki; ++t) {
      const T *a = A + g.a_taps[t] * g.lda, *b = B + g.b_taps[t];
      Vec column[V];
      for (int v = 0; v < V; ++v) column[v] = *reinterpret_cast<const Loose*>(b + v * kLanes);
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) acc[r][v] += a[r] * column[v];
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    T* c = g.C + g.c_rows[m + r] + x;
    for (int v = 0; v < V; ++v) *reinterpret_cast<Loose*>(c + v * kLanes) = acc[r][v];
  }
}

// The columns that do not fill a vector, one by one.
CE_INLINE void tail_column(const GatheredProduct<T>& g, int64_t x) {
  for (int64_t m = 0; m < g.M; ++m) {
    T* c = g.C + g.c_rows[m] + x;
    T sum = g.accumulate ? *c : T(0);
    for (int64_t q = 0; q < g.Ko; ++q) {
      const T *A = g.A + q * g.a_outer * g.lda + m, *B = g.B + q * g.b_outer + x;
      for (int64_t t = 0; t < g.Ki; ++t) sum += A[g.a_taps[t] * g.lda] * B[g.b_taps[t]];
    }
    *c = sum;
  }
}

template <int V>
CE_INLINE void rows(const GatheredProduct<T>& g, int64_t x) {
  int64_t m = 0;
  for (; m + kTileRows <= g.M; m += kTileRows) tile<kTileRows, V>(g, m, x);
  switch (g.M - m) {
    case 5: return tile<5, V>(g, m, x);
    case 4: return tile<4, V>(g, m, x);
    case 3: return tile<3, V>(g, m, x);
    case 2: return tile<2, V>(g, m, x);
    case 1: return tile<1, V>(g, m, x);
  }
}

// Columns x0 to x1, at most one panel.
inline void product(const GatheredProduct<T>& g, int64_t x0, int64_t x1) {
  int64_t x = x0;
  for (; x + kPanel <= x1; x += kPanel) rows<CE_PANEL_VECTORS>(g, x);
  switch ((x1 - x) / kLanes) {
#if CE_PANEL_VECTORS == 4
    case 3:
      rows<3>(g, x);
      x += 3 * kLanes;
      break;
    case 2:
      rows<2>(g, x);
      x += 2 * kLanes;
      break;
#endif
    case 1:
      rows<1>(g, x);
      x += kLanes;
      break;
  }
  for (; x < x1; ++x) tail_column(g, x);
}

constexpr ConvKernels<T> kernels{product, kPanel};

#undef CE_INLINE
