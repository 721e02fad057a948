// The arithmetic of a tangent sweep on one block of columns; compiled once per instruction set and dtype, with the CE_
// macros of ../common/foreach_target.inl. A block's width is a multiple of a vector.
//
// The work is in two register tiles of up to kTileRows rows by CE_PANEL_VECTORS vectors of columns: products, whose
// result stays in scratch, and rows of H y, which go straight into the update of Y. Sums run in the order of k.

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

// Rows i .. i + R of a slot have the products h: stores them, or updates Y in place.
template <int kKind, int R, int V>
CE_INLINE void finish(const SweepBlock<T>& q, const UpdateSlot<T>& s, int64_t i, int64_t x, const Vec (&h)[R][V]) {
  constexpr int kBuffers = kKind == kAdamUpdate ? 2 : kKind == kMomentumUpdate ? 1 : 0;
  T* d = kKind == kStoreUpdate ? q.out + (s.first + i) * q.ld_out + x : q.Y + (s.first + i) * q.ld + x;
  T *v = q.Y + (s.buffer[0] + i) * q.ld + x, *u = q.Y + (s.buffer[1] + i) * q.ld + x;
  Vec squares[V];
  for (int c = 0; c < V; ++c) squares[c] = Vec{};
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < V; ++c) {
      const int64_t at = c * kLanes;
      if constexpr (kKind == kStoreUpdate) {
        store(d + at, h[r][c]);
      } else {
        Vec own = load(d + at), first{}, second{};
        if constexpr (kBuffers > 0) first = load(v + at);
        if constexpr (kBuffers > 1) {
          second = load(u + at);
          update<kKind>(s, s.q[i + r], s.A[i + r], s.B[i + r], h[r][c], own, first, second);
        } else {
          update<kKind>(s, T(0), T(0), T(0), h[r][c], own, first, second);
        }
        store(d + at, own);
        squares[c] += own * own;
        if constexpr (kBuffers > 0) {
          store(v + at, first);
          squares[c] += first * first;
        }
        if constexpr (kBuffers > 1) {
          store(u + at, second);
          squares[c] += second * second;
        }
      }
    }
    d += kKind == kStoreUpdate ? q.ld_out : q.ld, v += q.ld, u += q.ld;
  }
  if constexpr (kKind != kStoreUpdate) {
    for (int c = 0; c < V; ++c) {
      T* total = q.squares + x + c * kLanes;
      store(total, load(total) + squares[c]);
    }
  }
}

template <int R, int V>
CE_INLINE void finish_as(const SweepBlock<T>& q, const UpdateSlot<T>& s, int64_t i, int64_t x, const Vec (&h)[R][V]) {
  switch (s.kind) {
    case kStoreUpdate: return finish<kStoreUpdate>(q, s, i, x, h);
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
  const T* next = q.Y + (s.first + o * n.I + i + R) * q.ld + x;  // the rows after these are the next tile's
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

inline void linear_forward(const SweepBlock<T>& q, const TangentNode<T>& n, const Packed<T>& p) {
  T* z = q.row(n.out.d);
  const int64_t w = q.w, ld = q.stride;
  if (n.row_w >= 0) {
    for (int64_t o = 0; o < n.O; ++o) {
      const T* V = q.Y + (n.row_w + o * n.I) * q.ld;
      product({p.a, n.R, V, q.ld, n.I, z + o * ld, n.O * ld, n.R, false, q.ld >= kFar}, w);
    }
  }
  if (n.in[0].has()) {
    for (int64_t r = 0; r < n.R; ++r) {
      const T* da = q.row(n.in[0].d + r * n.I);
      product({p.W, n.O, da, ld, n.I, z + r * n.O * ld, ld, n.O, n.row_w >= 0, false}, w);
    }
  }
  if (n.row_b < 0) return;
  const bool add = n.row_w >= 0 || n.in[0].has();
  for (int64_t row = 0; row < n.R * n.O; ++row) {
    const T* c = q.Y + (n.row_b + row % n.O) * q.ld;
    for (int64_t x = 0; x < w; x += kLanes) {
      store(z + row * ld + x, add ? load(z + row * ld + x) + load(c + x) : load(c + x));
    }
  }
}

// d(delta_in) first: it reads V, which the updates overwrite.
inline void linear_backward(const SweepBlock<T>& q, const TangentNode<T>& n, const Packed<T>& p) {
  const int64_t w = q.w, ld = q.stride;
  if (n.in[0].has()) {
    T* e_in = q.row(n.in[0].e);
    for (int64_t r = 0; r < n.R; ++r) {
      product({n.W, n.I, q.row(n.out.e + r * n.O), ld, n.O, e_in + r * n.I * ld, ld, n.I, n.adds[0], false}, w);
    }
    for (int64_t i = 0; n.row_w >= 0 && i < n.I; ++i) {
      const T* V = q.Y + (n.row_w + i) * q.ld;
      product({p.delta, n.R, V, n.I * q.ld, n.O, e_in + i * ld, n.I * ld, n.R, true, false}, w);
    }
  }
  if (n.row_w >= 0) weights(q, n, q.slots->at(n.row_w));
  if (n.row_b >= 0) biases(q, n, q.slots->at(n.row_b));
}

// to (+)= factor from, and + second other where there is one; factors constant, or one a row.
inline void scale_rows(const SweepBlock<T>& q, int64_t rows, T* to, const T* from, const T* factor, T constant,
                       bool add, const T* second, const T* other) {
  for (int64_t row = 0; row < rows; ++row) {
    const T f = factor == nullptr ? constant : factor[row], g = second == nullptr ? T(0) : second[row];
    for (int64_t x = row * q.stride; x < row * q.stride + q.w; x += kLanes) {
      Vec sum = f * load(from + x);
      if (second != nullptr) sum += g * load(other + x);
      store(to + x, add ? load(to + x) + sum : sum);
    }
  }
}

inline void sum_forward(const SweepBlock<T>& q, const TangentNode<T>& n) {
  T* z = q.row(n.out.d);
  if (n.in[0].has()) scale_rows(q, n.R, z, q.row(n.in[0].d), nullptr, n.alpha, false, nullptr, nullptr);
  if (n.in[1].has()) scale_rows(q, n.R, z, q.row(n.in[1].d), nullptr, n.beta, n.in[0].has(), nullptr, nullptr);
}

inline void sum_backward(const SweepBlock<T>& q, const TangentNode<T>& n) {
  const T* e = q.row(n.out.e);
  for (int i = 0; i < 2; ++i) {
    if (!n.in[i].has()) continue;
    scale_rows(q, n.R, q.row(n.in[i].e), e, nullptr, i == 0 ? n.alpha : n.beta, n.adds[i], nullptr, nullptr);
  }
}

inline void scale_backward(const SweepBlock<T>& q, const TangentNode<T>& n) {
  scale_rows(q, n.R, q.row(n.in[0].e), q.row(n.out.e), n.a, T(0), n.adds[0], n.W, q.row(n.in[0].d));
}

// s (diag p - p p^T) dz on dz minus dz at the largest p, where nothing cancels.
inline void softmax(const SweepBlock<T>& q, const TangentNode<T>& n) {
  for (int64_t r = 0; r < n.R; ++r) {
    const T* p = n.a + r * n.O;
    const T *d = q.row(n.in[0].d + r * n.O), *top = d + (std::max_element(p, p + n.O) - p) * q.stride;
    T* e = q.row(n.in[0].e + r * n.O);
    for (int64_t x = 0; x < q.w; x += kLanes) {
      const Vec base = load(top + x);
      Vec mean{};
      for (int64_t c = 0; c < n.O; ++c) mean += p[c] * (load(d + c * q.stride + x) - base);
      for (int64_t c = 0; c < n.O; ++c) {
        store(e + c * q.stride + x, (n.W[r] * p[c]) * ((load(d + c * q.stride + x) - base) - mean));
      }
    }
  }
}

inline void sweep(const SweepBlock<T>& q) {
  const TangentProgram<T>& program = *q.program;
  for (int i = 0; i < program.count; ++i) {
    const TangentNode<T>& n = program.node[i];
    switch (n.kind) {
      case kLinearNode: linear_forward(q, n, q.packed[i]); break;
      case kScaleNode: scale_rows(q, n.R, q.row(n.out.d), q.row(n.in[0].d), n.a, T(0), false, nullptr, nullptr); break;
      case kSumNode: sum_forward(q, n); break;
      case kSoftmaxNode: softmax(q, n); break;
      case kDiagonalNode:
        scale_rows(q, n.R, q.row(n.in[0].e), q.row(n.in[0].d), n.a, n.alpha, false, nullptr, nullptr);
        break;
    }
  }
  for (int i = program.count - 1; i >= 0; --i) {
    const TangentNode<T>& n = program.node[i];
    switch (n.kind) {
      case kLinearNode: linear_backward(q, n, q.packed[i]); break;
      case kScaleNode: scale_backward(q, n); break;
      case kSumNode: sum_backward(q, n); break;
    }
  }
}

// H y is given: one pass over each slot.
inline void update_given(const SweepBlock<T>& q, const UpdateSlot<T>& s) {
  for (int64_t i = 0; i < s.rows; ++i) {
    for (int64_t x = 0; x < q.w; x += kLanes) {
      const Vec h[1][1] = {{load(q.HY + (s.first + i) * q.ld_given + x)}};
      finish_as<1, 1>(q, s, i, x, h);
    }
  }
}

const SweepKernels<T> kernels{sweep, update_given, kLanes};

#undef CE_INLINE
