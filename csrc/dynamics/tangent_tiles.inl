// The register tiles of a tangent sweep, of up to six or eight rows by CE_PANEL_VECTORS vectors of columns: products,
// whose result stays in scratch, and rows of H y, which go straight into the update of Y. Sums run in the order of k.
// Part of tangent_sweep_kernel.inl.

#define CE_INLINE inline __attribute__((always_inline))

using T = CE_SCALAR;
typedef T Vec __attribute__((vector_size(CE_VECTOR_BYTES)));
typedef T Loose __attribute__((vector_size(CE_VECTOR_BYTES), aligned(sizeof(T)), may_alias));

constexpr int64_t kLanes = CE_VECTOR_BYTES / sizeof(T);
constexpr int64_t kRun = 8;                 // rows of Y that are read side by side
constexpr int64_t kFar = 4096 / sizeof(T);  // where rows are pages apart

CE_INLINE Vec load(const T* p) { return *reinterpret_cast<const Loose*>(p); }
CE_INLINE void store(T* p, Vec v) { *reinterpret_cast<Loose*>(p) = v; }

// C[m] (+)= sum_k A[k, m] B[k] for rows C[m], B[k] of columns.
struct Product {
  const T* A;
  int64_t lda;
  const T* B;
  int64_t ldb;
  int64_t K;
  T* C;
  int64_t ldc;
  int64_t M;
  bool add;
  bool far;  // B lies in Y: consecutive rows are pages apart
};

template <int R, int V>
CE_INLINE void product_tile(const Product& g, int64_t m, int64_t x) {
  Vec acc[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) acc[r][v] = g.add ? load(g.C + (m + r) * g.ldc + x + v * kLanes) : Vec{};
  }
  for (int64_t k = 0; k < g.K; ++k) {
    const T *a = g.A + k * g.lda + m, *b = g.B + k * g.ldb + x;
    if (g.far) {
      for (int v = 0; v < V; ++v) __builtin_prefetch(b + kRun * g.ldb + v * kLanes);
    }
    Vec column[V];
    for (int v = 0; v < V; ++v) column[v] = load(b + v * kLanes);
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) acc[r][v] += a[r] * column[v];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) store(g.C + (m + r) * g.ldc + x + v * kLanes, acc[r][v]);
  }
}

// Calls body with the constants (rows, m) that cover M rows, in tiles of V vectors: what the registers bear, and at
// least eight sums side by side, which the latency of an addition takes.
template <int V, typename Body>
CE_INLINE void for_row_tiles(int64_t M, const Body& body) {
  constexpr int kRows = V == CE_PANEL_VECTORS ? 6 : 8;
  int64_t m = 0;
  for (; m + kRows <= M; m += kRows) body(std::integral_constant<int, kRows>{}, m);
  for (; m + 4 <= M; m += 4) body(std::integral_constant<int, 4>{}, m);
  for (; m + 2 <= M; m += 2) body(std::integral_constant<int, 2>{}, m);
  if (m < M) body(std::integral_constant<int, 1>{}, m);
}

// Calls body with the constants (vectors, x) that cover w columns.
template <typename Body>
CE_INLINE void for_panels(int64_t w, const Body& body) {
  int64_t x = 0;
  for (; x + CE_PANEL_VECTORS * kLanes <= w; x += CE_PANEL_VECTORS * kLanes) {
    body(std::integral_constant<int, CE_PANEL_VECTORS>{}, x);
  }
  for (; x < w; x += kLanes) body(std::integral_constant<int, 1>{}, x);
}

// A few rows of Y at a time, each read along its columns: rows are pages apart, and memory answers best in long runs.
inline void far_product(const Product& g, int64_t w) {
  for (int64_t k = 0; k < g.K; k += kRun) {
    Product part = g;
    part.A += k * g.lda, part.B += k * g.ldb;
    part.K = std::min(kRun, g.K - k);
    part.add = g.add || k > 0;
    for_panels(w, [&](auto vectors, int64_t x) __attribute__((always_inline)) {
      for_row_tiles<decltype(vectors)::value>(g.M, [&](auto rows, int64_t m) __attribute__((always_inline)) {
        product_tile<decltype(rows)::value, decltype(vectors)::value>(part, m, x);
      });
    });
  }
}

inline void product(const Product& g, int64_t w) {
  if (g.far) return far_product(g, w);
  for_panels(w, [&](auto vectors, int64_t x) __attribute__((always_inline)) {
    for_row_tiles<decltype(vectors)::value>(g.M, [&](auto rows, int64_t m) __attribute__((always_inline)) {
      product_tile<decltype(rows)::value, decltype(vectors)::value>(g, m, x);
    });
  });
}

// Neighbouring rows of a slot in Y, one after the other: its entry and its buffers, from column x on.
template <int kBuffers>
struct StateRow {
  T* at[1 + kBuffers];

  CE_INLINE StateRow(const SweepBlock<T>& q, const UpdateSlot<T>& s, int64_t i, int64_t x) {
    at[0] = q.Y + (s.first + i) * q.ld + x;
    for (int b = 0; b < kBuffers; ++b) at[1 + b] = q.Y + (s.buffer[b] + i) * q.ld + x;
  }

  CE_INLINE void next(int64_t ld) {
    for (int b = 0; b <= kBuffers; ++b) at[b] += ld;
  }

  // One vector of columns has the product h; adds to squares.
  template <int kKind>
  CE_INLINE void update_at(int64_t x, const UpdateSlot<T>& s, int64_t i, const Vec& h, Vec& squares) const {
    Vec value[3] = {};  // d, v, u
#pragma GCC unroll 3
    for (int b = 0; b <= kBuffers; ++b) value[b] = load(at[b] + x);
    if constexpr (kKind == kAdamUpdate) {
      update<kKind>(s, s.q[i], s.A[i], s.B[i], h, value[0], value[1], value[2]);
    } else {
      update<kKind>(s, T(0), T(0), T(0), h, value[0], value[1], value[2]);
    }
#pragma GCC unroll 3
    for (int b = 0; b <= kBuffers; ++b) {
      store(at[b] + x, value[b]);
      squares += value[b] * value[b];
    }
  }
};

// Rows i .. i + R of a slot have the products h: updates Y in place.
template <int kKind, int R, int V>
CE_INLINE void finish(const SweepBlock<T>& q, const UpdateSlot<T>& s, int64_t i, int64_t x, const Vec (&h)[R][V]) {
  StateRow<buffers_of(kKind)> row(q, s, i, x);
  Vec squares[V];
  for (int c = 0; c < V; ++c) squares[c] = Vec{};
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < V; ++c) row.template update_at<kKind>(c * kLanes, s, i + r, h[r][c], squares[c]);
    row.next(q.ld);
  }
  for (int c = 0; c < V; ++c) {
    T* total = q.squares + x + c * kLanes;
    store(total, load(total) + squares[c]);
  }
}

// The same, of tangent_product: stores them.
template <int R, int V>
CE_INLINE void store_rows(const SweepBlock<T>& q, const UpdateSlot<T>& s, int64_t i, int64_t x, const Vec (&h)[R][V]) {
  T* row = q.out + (s.first + i) * q.ld_out + x;
  for (int r = 0; r < R; ++r, row += q.ld_out) {
    for (int c = 0; c < V; ++c) store(row + c * kLanes, h[r][c]);
  }
}

template <int R, int V>
CE_INLINE void finish_as(const SweepBlock<T>& q, const UpdateSlot<T>& s, int64_t i, int64_t x, const Vec (&h)[R][V]) {
  switch (s.kind) {
    case kStoreUpdate: return store_rows(q, s, i, x, h);
    case kPlainUpdate: return finish<kPlainUpdate>(q, s, i, x, h);
    case kMomentumUpdate: return finish<kMomentumUpdate>(q, s, i, x, h);
    case kAdamUpdate: return finish<kAdamUpdate>(q, s, i, x, h);
  }
}

// R inputs of one output's weights: (H y)_W = sum_r d(delta_r) a_r^T + delta_r da_r^T.
template <int R, int V>
CE_INLINE void weight_tile(const SweepBlock<T>& q, const TangentNode<T>& n, const UpdateSlot<T>& s, int64_t o,
                           int64_t i, int64_t x) {
  const T *e = q.row(n.out.e + o) + x, *a = n.a + i;
  const bool far = q.ld >= kFar;
  const T* next = q.theta + (s.first + o * n.I + i + R) * q.ld + x;  // the rows after these are the next tile's
  Vec h[R][V];
  for (int m = 0; m < R; ++m) {
    for (int v = 0; far && v < V; ++v) __builtin_prefetch(next + m * q.ld + v * kLanes, 1);
  }
  for (int m = 0; m < R; ++m) {
    for (int v = 0; v < V; ++v) h[m][v] = Vec{};
  }
  for (int64_t r = 0; r < n.R; ++r, e += n.O * q.stride, a += n.I) {
    Vec column[V];
    for (int v = 0; v < V; ++v) column[v] = load(e + v * kLanes);
    for (int m = 0; m < R; ++m) {
      for (int v = 0; v < V; ++v) h[m][v] += a[m] * column[v];
    }
  }
  if (n.in[0].has()) {
    const T* d = q.row(n.in[0].d + i) + x;
    for (int64_t r = 0; r < n.R; ++r, d += n.I * q.stride) {
      const T delta = n.delta[r * n.O + o];
      for (int m = 0; m < R; ++m) {
        for (int v = 0; v < V; ++v) h[m][v] += delta * load(d + m * q.stride + v * kLanes);
      }
    }
  }
  finish_as<R, V>(q, s, o * n.I + i, x, h);
}

// The tiles of one width, along the columns from x to x + w.
template <int V>
CE_INLINE void weight_rows(const SweepBlock<T>& block, const TangentNode<T>& node, const UpdateSlot<T>& slot, int64_t x,
                           int64_t w) {
  // Copies: the compiler cannot know that a store to Y leaves the originals as they are.
  const SweepBlock<T> q = block;
  const TangentNode<T> n = node;
  const UpdateSlot<T> s = slot;
  for (int64_t o = 0; o < n.O; ++o) {
    for_row_tiles<V>(n.I, [&](auto rows, int64_t i) __attribute__((always_inline)) {
      for (int64_t at = x; at < x + w; at += V * kLanes) weight_tile<decltype(rows)::value, V>(q, n, s, o, i, at);
    });
  }
}

inline void weights(const SweepBlock<T>& q, const TangentNode<T>& n, const UpdateSlot<T>& s) {
  constexpr int64_t kPanel = CE_PANEL_VECTORS * kLanes;
  const int64_t whole = q.w / kPanel * kPanel;
  weight_rows<CE_PANEL_VECTORS>(q, n, s, 0, whole);
  weight_rows<1>(q, n, s, whole, q.w - whole);
}

// (H y)_b = sum_r d(delta_r).
inline void biases(const SweepBlock<T>& q, const TangentNode<T>& n, const UpdateSlot<T>& s) {
  for (int64_t o = 0; o < n.O; ++o) {
    for (int64_t x = 0; x < q.w; x += kLanes) {
      Vec h[1][1] = {};
      for (int64_t r = 0; r < n.R; ++r) h[0][0] += load(q.row(n.out.e + r * n.O + o) + x);
      finish_as<1, 1>(q, s, o, x, h);
    }
  }
}
