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
constexpr int64_t kTileRows = CE_PANEL_VECTORS == 4 ? 12 : 6;                   // of 32 or 16 registers
constexpr int most_vectors(int rows) { return rows <= kTileRows / 2 ? 4 : 2; }  // vectors of a dense tile
constexpr int64_t kFewRows = 3;  // then a tile is CE_PANEL_VECTORS wide instead

// Of the last vector of a row, the numbers that no vector before it holds.
typedef decltype(Vec{} < Vec{}) Mask;
CE_INLINE Mask last_lanes(int64_t count) {
  Mask mask;
  for (int64_t i = 0; i < kLanes; ++i) mask[i] = i < kLanes - count ? 0 : -1;
  return mask;
}

// V vectors of columns: from x on, the last one `last` after the first. Where that overlaps the one before (or, if it
// is the only one, what is done already), its lanes that are not fresh keep what they have.
struct Where {
  int64_t x, last;
  Mask fresh;
};

// R rows of one tile.
template <int R, int V, bool kTail>
CE_INLINE void tile(const GatheredProduct<T>& g, const T* tile_A, const int64_t* c_rows, const Where& at) {
  const auto from = [&](int v) { return kTail && v == V - 1 ? at.last : v * kLanes; };
  Vec acc[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const T* c = g.C + c_rows[r] + at.x;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[r][v] = g.accumulate ? *reinterpret_cast<const Loose*>(c + from(v)) : Vec{};
  }
  for (int64_t q = 0; q < g.Ko; ++q) {
    const T *A = tile_A + q * g.a_outer, *B = g.B + q * g.b_outer + at.x;
    for (int64_t t = 0; t < g.Ki; ++t) {
      const T *a = A + g.a_taps[t], *b = B + g.b_taps[t];
      Vec column[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) column[v] = *reinterpret_cast<const Loose*>(b + from(v));
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[r][v] += a[r] * column[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    T* c = g.C + c_rows[r] + at.x;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      if (kTail && v == V - 1) acc[r][v] = at.fresh ? acc[r][v] : Vec(*reinterpret_cast<const Loose*>(c + from(v)));
      *reinterpret_cast<Loose*>(c + from(v)) = acc[r][v];
    }
  }
}

template <int V, bool kTail = false>
CE_INLINE void columns(const GatheredProduct<T>& g, const Where& at) {
  const T* A = g.A;
  for (int64_t m = 0; m < g.M; m += g.rows, A += g.a_tile) {
    const int64_t* c = g.c_rows + m;
    switch (std::min(g.rows, g.M - m)) {
#if CE_PANEL_VECTORS == 4
      case 12: tile<12, V, kTail>(g, A, c, at); break;
      case 11: tile<11, V, kTail>(g, A, c, at); break;
      case 10: tile<10, V, kTail>(g, A, c, at); break;
      case 9: tile<9, V, kTail>(g, A, c, at); break;
      case 8: tile<8, V, kTail>(g, A, c, at); break;
      case 7: tile<7, V, kTail>(g, A, c, at); break;
#endif
      case 6: tile<6, V, kTail>(g, A, c, at); break;
      case 5: tile<5, V, kTail>(g, A, c, at); break;
      case 4: tile<4, V, kTail>(g, A, c, at); break;
      case 3: tile<3, V, kTail>(g, A, c, at); break;
      case 2: tile<2, V, kTail>(g, A, c, at); break;
      case 1: tile<1, V, kTail>(g, A, c, at); break;
    }
  }
}

#if CE_PANEL_VECTORS == 4
// Too few rows to keep the multipliers busy with two vectors.
CE_INLINE void wide_columns(const GatheredProduct<T>& g, int64_t x) {
  switch (g.M) {
    case 3: return tile<3, 4, false>(g, g.A, g.c_rows, {x, 0, Mask{}});
    case 2: return tile<2, 4, false>(g, g.A, g.c_rows, {x, 0, Mask{}});
    case 1: return tile<1, 4, false>(g, g.A, g.c_rows, {x, 0, Mask{}});
  }
}
#endif

// Columns x0 to x1, at most one panel; of the last vector, which may begin before x0, those that are not done yet.
inline void product(const GatheredProduct<T>& g, int64_t x0, int64_t x1) {
  int64_t x = x0;
#if CE_PANEL_VECTORS == 4
  if (g.M <= kFewRows) {
    for (; x + kPanel <= x1; x += kPanel) wide_columns(g, x);
  }
#endif
  for (; x + kTileVectors * kLanes <= x1; x += kTileVectors * kLanes) columns<kTileVectors>(g, {x, 0, Mask{}});
  const int64_t left = x1 - x;
  if (left > kLanes) {
    columns<2, true>(g, {x, left - kLanes, last_lanes(left - kLanes)});
  } else if (left == kLanes) {
    columns<1>(g, {x, 0, Mask{}});
  } else if (left > 0) {
    columns<1, true>(g, {x1 - kLanes, 0, last_lanes(left)});
  }
}

// R rows of one tile, V vectors of lanes.
template <int R, int V>
CE_INLINE void dense_tile(const DenseProduct<T>& g, const T* a, const T* b, T* C) {
  Vec acc[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      acc[r][v] = g.accumulate ? *reinterpret_cast<const Loose*>(C + r * g.c_row + v * kLanes) : Vec{};
    }
  }
  for (int64_t t = 0; t < g.K; ++t, a += g.rows, b += g.b_row) {
    Vec column[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) column[v] = *reinterpret_cast<const Loose*>(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[r][v] += a[r] * column[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) *reinterpret_cast<Loose*>(C + r * g.c_row + v * kLanes) = acc[r][v];
  }
}

template <int V>
CE_INLINE void dense_panel(const DenseProduct<T>& g, int64_t x) {
  const T *A = g.A, *B = g.B + x;
  T* C = g.C + x;
  for (int64_t m = 0; m < g.M; m += g.rows, A += g.a_tile, C += g.rows * g.c_row) {
    switch (std::min(g.rows, g.M - m)) {
#if CE_PANEL_VECTORS == 4
      case 12:
        if constexpr (V <= 2) dense_tile<12, V>(g, A, B, C);
        break;
      case 11:
        if constexpr (V <= 2) dense_tile<11, V>(g, A, B, C);
        break;
      case 10:
        if constexpr (V <= 2) dense_tile<10, V>(g, A, B, C);
        break;
      case 9:
        if constexpr (V <= 2) dense_tile<9, V>(g, A, B, C);
        break;
      case 8:
        if constexpr (V <= 2) dense_tile<8, V>(g, A, B, C);
        break;
      case 7:
        if constexpr (V <= 2) dense_tile<7, V>(g, A, B, C);
        break;
#endif
      case 6:
        if constexpr (V <= most_vectors(6)) dense_tile<6, V>(g, A, B, C);
        break;
      case 5:
        if constexpr (V <= most_vectors(5)) dense_tile<5, V>(g, A, B, C);
        break;
      case 4:
        if constexpr (V <= most_vectors(4)) dense_tile<4, V>(g, A, B, C);
        break;
      case 3: dense_tile<3, V>(g, A, B, C); break;
      case 2: dense_tile<2, V>(g, A, B, C); break;
      case 1: dense_tile<1, V>(g, A, B, C); break;
    }
  }
}

inline void dense(const DenseProduct<T>& g) {
  int64_t x = 0;
  if (g.rows <= kTileRows / 2) {
    for (; x + 4 * kLanes <= g.lanes; x += 4 * kLanes) dense_panel<4>(g, x);
  }
  for (; x + 2 * kLanes <= g.lanes; x += 2 * kLanes) dense_panel<2>(g, x);
  for (; x < g.lanes; x += kLanes) dense_panel<1>(g, x);
}

constexpr ConvKernels<T> kernels{product, dense, kPanel, kTileRows, kLanes};

#undef CE_INLINE
