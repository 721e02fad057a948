// The arithmetic of conv_lanes_ on the CPU; compiled once per instruction set and dtype, with the CE_ macros of
// ../common/foreach_target.inl.
//
// Everything is one primitive, a product with gathered rows: for M rows of the result and all K = Ko Ki terms,
//
//     C[c_rows[m]][x] (+)= sum_{q < Ko, t < Ki} A[m / rows][(q a_outer + a_taps[t]) + m % rows] B[q b_outer + b_taps[t]
//     + x].
//
// A is in tiles of `rows` rows, a_tile numbers apart, so that a register tile reads it from one end to the other. A
// register tile holds these rows by kTileVectors vectors of columns; sums run in the order of (q, t).

#define CE_INLINE inline __attribute__((always_inline))

using T = CE_SCALAR;
typedef T Vec __attribute__((vector_size(CE_VECTOR_BYTES)));
typedef T Loose __attribute__((vector_size(CE_VECTOR_BYTES), aligned(sizeof(T)), may_alias));

constexpr int64_t kLanes = CE_VECTOR_BYTES / sizeof(T);
constexpr int64_t kPanel = CE_PANEL_VECTORS * kLanes;
constexpr int64_t kTileVectors = 2;
constexpr int64_t kTileRows = CE_PANEL_VECTORS == 4 ? 12 : 6;  // of 32 or 16 registers
constexpr int64_t kFewRows = 3;                                // then a tile is CE_PANEL_VECTORS wide instead

// R rows of one tile, V vectors of columns from x on.
template <int R, int V>
CE_INLINE void tile(const GatheredProduct<T>& g, const T* tile_A, const int64_t* c_rows, int64_t x) {
  Vec acc[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const T* c = g.C + c_rows[r] + x;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[r][v] = g.accumulate ? *reinterpret_cast<const Loose*>(c + v * kLanes) : Vec{};
  }
  for (int64_t q = 0; q < g.Ko; ++q) {
    const T *A = tile_A + q * g.a_outer, *B = g.B + q * g.b_outer + x;
    for (int64_t t = 0; t < g.Ki; ++t) {
      const T *a = A + g.a_taps[t], *b = B + g.b_taps[t];
      Vec column[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) column[v] = *reinterpret_cast<const Loose*>(b + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[r][v] += a[r] * column[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    T* c = g.C + c_rows[r] + x;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) *reinterpret_cast<Loose*>(c + v * kLanes) = acc[r][v];
  }
}

// The columns that do not fill a vector, one by one.
CE_INLINE void tail_column(const GatheredProduct<T>& g, int64_t x) {
  for (int64_t m = 0; m < g.M; ++m) {
    T* c = g.C + g.c_rows[m] + x;
    T sum = g.accumulate ? *c : T(0);
    for (int64_t q = 0; q < g.Ko; ++q) {
      const T* A = g.A + m / g.rows * g.a_tile + m % g.rows + q * g.a_outer;
      const T* B = g.B + q * g.b_outer + x;
      for (int64_t t = 0; t < g.Ki; ++t) sum += A[g.a_taps[t]] * B[g.b_taps[t]];
    }
    *c = sum;
  }
}

template <int V>
CE_INLINE void columns(const GatheredProduct<T>& g, int64_t x) {
  const T* A = g.A;
  for (int64_t m = 0; m < g.M; m += g.rows, A += g.a_tile) {
    const int64_t* c = g.c_rows + m;
    switch (std::min(g.rows, g.M - m)) {
#if CE_PANEL_VECTORS == 4
      case 12: tile<12, V>(g, A, c, x); break;
      case 11: tile<11, V>(g, A, c, x); break;
      case 10: tile<10, V>(g, A, c, x); break;
      case 9: tile<9, V>(g, A, c, x); break;
      case 8: tile<8, V>(g, A, c, x); break;
      case 7: tile<7, V>(g, A, c, x); break;
#endif
      case 6: tile<6, V>(g, A, c, x); break;
      case 5: tile<5, V>(g, A, c, x); break;
      case 4: tile<4, V>(g, A, c, x); break;
      case 3: tile<3, V>(g, A, c, x); break;
      case 2: tile<2, V>(g, A, c, x); break;
      case 1: tile<1, V>(g, A, c, x); break;
    }
  }
}

#if CE_PANEL_VECTORS == 4
// Too few rows to keep the multipliers busy with two vectors.
CE_INLINE void wide_columns(const GatheredProduct<T>& g, int64_t x) {
  switch (g.M) {
    case 3: return tile<3, 4>(g, g.A, g.c_rows, x);
    case 2: return tile<2, 4>(g, g.A, g.c_rows, x);
    case 1: return tile<1, 4>(g, g.A, g.c_rows, x);
  }
}
#endif

// Columns x0 to x1, at most one panel.
inline void product(const GatheredProduct<T>& g, int64_t x0, int64_t x1) {
  int64_t x = x0;
#if CE_PANEL_VECTORS == 4
  if (g.M <= kFewRows) {
    for (; x + kPanel <= x1; x += kPanel) wide_columns(g, x);
  }
#endif
  for (; x + kTileVectors * kLanes <= x1; x += kTileVectors * kLanes) columns<kTileVectors>(g, x);
  if (x + kLanes <= x1) {
    columns<1>(g, x);
    x += kLanes;
  }
  for (; x < x1; ++x) tail_column(g, x);
}

constexpr ConvKernels<T> kernels{product, kPanel, kTileRows};

#undef CE_INLINE
