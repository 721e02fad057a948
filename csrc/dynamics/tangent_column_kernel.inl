// The arithmetic of a tangent sweep on a single column that lies contiguous in memory: vectors run along the inputs of
// a layer instead of along columns. Compiled once per instruction set and dtype (../common/foreach_target.inl).

#define CE_INLINE inline __attribute__((always_inline))

using T = CE_SCALAR;
typedef T Vec __attribute__((vector_size(CE_VECTOR_BYTES)));
typedef T Loose __attribute__((vector_size(CE_VECTOR_BYTES), aligned(sizeof(T)), may_alias));

constexpr int64_t kLanes = CE_VECTOR_BYTES / sizeof(T);
constexpr int kRows = 4;     // rows and outputs of a tile, whose sums stay in registers
constexpr int kVectors = 2;  // vectors of inputs of a tile

CE_INLINE Vec load(const T* p) { return *reinterpret_cast<const Loose*>(p); }
CE_INLINE void store(T* p, Vec v) { *reinterpret_cast<Loose*>(p) = v; }

CE_INLINE T total(T v) { return v; }
CE_INLINE T total(Vec v) {
  T sum = v[0];
  for (int64_t lane = 1; lane < kLanes; ++lane) sum += v[lane];
  return sum;
}

// z[m zm + o zo] += x[m xm] . y[o yo] for M times O pairs of runs of n numbers.
template <int M, int O>
CE_INLINE void dots(const T* x, int64_t xm, const T* y, int64_t yo, int64_t n, T* z, int64_t zm, int64_t zo) {
  Vec acc[M][O];
  for (int m = 0; m < M; ++m) {
    for (int o = 0; o < O; ++o) acc[m][o] = Vec{};
  }
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Vec row[O];
    for (int o = 0; o < O; ++o) row[o] = load(y + o * yo + i);
    for (int m = 0; m < M; ++m) {
      const Vec column = load(x + m * xm + i);
      for (int o = 0; o < O; ++o) acc[m][o] += column * row[o];
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int o = 0; o < O; ++o) {
      T sum = total(acc[m][o]);
      for (int64_t j = i; j < n; ++j) sum += x[m * xm + j] * y[o * yo + j];
      z[m * zm + o * zo] += sum;
    }
  }
}

// Calls tile(constant, at) for parts of n, most of them of kSize, the rest one by one.
template <int kSize, typename Tile>
CE_INLINE void in_tiles(int64_t n, const Tile& tile) {
  int64_t at = 0;
  for (; at + kSize <= n; at += kSize) tile(std::integral_constant<int, kSize>{}, at);
  for (; at < n; ++at) tile(std::integral_constant<int, 1>{}, at);
}

// z[m, o] += x[m] . y[o] for all rows of x [M, n] and y [O, n]; z [M, O].
inline void all_dots(const T* x, int64_t M, const T* y, int64_t O, int64_t n, T* z) {
  in_tiles<kRows>(O, [&](auto outputs, int64_t o) __attribute__((always_inline)) {
    in_tiles<kRows>(M, [&](auto rows, int64_t m) __attribute__((always_inline)) {
      dots<decltype(rows)::value, decltype(outputs)::value>(x + m * n, n, y + o * n, n, n, z + m * O + o, O, 1);
    });
  });
}

inline void column_forward(const SweepBlock<T>& q, const TangentNode<T>& n) {
  T* z = q.row(n.out.d);
  for (int64_t at = 0; at < n.R * n.O; ++at) z[at] = n.row_b < 0 ? T(0) : q.theta[n.row_b + at % n.O];
  if (n.row_w >= 0) all_dots(n.a, n.R, q.theta + n.row_w, n.O, n.I, z);
  if (n.in[0].has()) all_dots(q.row(n.in[0].d), n.R, n.W, n.O, n.I, z);
}

CE_INLINE T lanes_of(const T* p, T) { return *p; }
CE_INLINE Vec lanes_of(const T* p, const Vec&) { return load(p); }
CE_INLINE void store_lanes(T* p, T v) { *p = v; }
CE_INLINE void store_lanes(T* p, const Vec& v) { store(p, v); }

// sums[m][v] += sum_j x[j xj + m xm] y[j n + v], of M outputs and a run of kCount vectors, or of numbers.
template <int M, int kCount, typename V>
CE_INLINE void outer(const T* x, int64_t xj, int64_t xm, const T* y, int64_t n, int64_t J, V (&sums)[M][kCount]) {
  constexpr int64_t step = sizeof(V) / sizeof(T);
  for (int64_t j = 0; j < J; ++j, x += xj, y += n) {
    V row[kCount];
    for (int v = 0; v < kCount; ++v) row[v] = lanes_of(y + v * step, V{});
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < kCount; ++v) sums[m][v] += x[m * xm] * row[v];
    }
  }
}

// Calls tile(constant, type, at) for runs of n numbers: of vectors, the rest number by number.
template <typename Tile>
CE_INLINE void in_runs(int64_t n, const Tile& tile) {
  int64_t at = 0;
  for (; at + kVectors * kLanes <= n; at += kVectors * kLanes) {
    tile(std::integral_constant<int, kVectors>{}, Vec{}, at);
  }
  for (; at + kLanes <= n; at += kLanes) tile(std::integral_constant<int, 1>{}, Vec{}, at);
  for (; at < n; ++at) tile(std::integral_constant<int, 1>{}, T{}, at);
}

inline void column_to_input(const SweepBlock<T>& q, const TangentNode<T>& n) {
  in_tiles<kRows>(n.R, [&](auto rows, int64_t r) __attribute__((always_inline)) {
    in_runs(n.I, [&](auto count, auto type, int64_t i) __attribute__((always_inline)) {
      using V = decltype(type);
      V sums[decltype(rows)::value][decltype(count)::value] = {};
      outer(q.row(n.out.e + r * n.O), 1, n.O, n.W + i, n.I, n.O, sums);
      if (n.row_w >= 0) outer(n.delta + r * n.O, 1, n.O, q.theta + n.row_w + i, n.I, n.O, sums);
      for (int m = 0; m < rows; ++m) {
        for (int v = 0; v < count; ++v) {
          T* to = q.row(n.in[0].e + (r + m) * n.I + i) + v * static_cast<int64_t>(sizeof(V) / sizeof(T));
          store_lanes(to, n.adds[0] ? lanes_of(to, V{}) + sums[m][v] : sums[m][v]);
        }
      }
    });
  });
}

// Entries i of a slot, one or a vector of them, have the products h: stores them, or updates Y. Adds to squares.
template <int kKind, typename V>
CE_INLINE void finish(const SweepBlock<T>& q, const UpdateSlot<T>& s, int64_t i, const V& h, V& squares) {
  if constexpr (kKind == kStoreUpdate) {
    store_lanes(q.out + s.first + i, h);
  } else {
    V d = lanes_of(q.Y + s.first + i, V{}), v{}, u{};
    if constexpr (kKind != kPlainUpdate) v = lanes_of(q.Y + s.buffer[0] + i, V{});
    if constexpr (kKind == kAdamUpdate) {
      u = lanes_of(q.Y + s.buffer[1] + i, V{});
      update<kKind>(s, lanes_of(s.q + i, V{}), lanes_of(s.A + i, V{}), lanes_of(s.B + i, V{}), h, d, v, u);
      store_lanes(q.Y + s.buffer[1] + i, u);
    } else {
      update<kKind>(s, V{}, V{}, V{}, h, d, v, u);
    }
    store_lanes(q.Y + s.first + i, d);
    if constexpr (kKind != kPlainUpdate) store_lanes(q.Y + s.buffer[0] + i, v);
    squares += d * d + v * v + u * u;
  }
}

// h of entries start .. start + n of a slot, by make(i, type) for one entry or a vector of them.
template <int kKind, typename Make>
CE_INLINE void finish_run(const SweepBlock<T>& q, const UpdateSlot<T>& s, int64_t start, int64_t n, const Make& make) {
  Vec squares{};
  T rest = T(0);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) finish<kKind>(q, s, start + i, make(i, Vec{}), squares);
  for (; i < n; ++i) finish<kKind>(q, s, start + i, make(i, T{}), rest);
  if constexpr (kKind != kStoreUpdate) *q.squares += total(squares) + rest;
}

template <typename Make>
CE_INLINE void finish_as(const SweepBlock<T>& q, const UpdateSlot<T>& s, int64_t start, int64_t n, const Make& make) {
  switch (s.kind) {
    case kStoreUpdate: return finish_run<kStoreUpdate>(q, s, start, n, make);
    case kPlainUpdate: return finish_run<kPlainUpdate>(q, s, start, n, make);
    case kMomentumUpdate: return finish_run<kMomentumUpdate>(q, s, start, n, make);
    case kAdamUpdate: return finish_run<kAdamUpdate>(q, s, start, n, make);
  }
}

// The same, of entries that follow start, a run of vectors or one number.
template <int kKind, int kCount, typename V>
CE_INLINE void finish_sums(const SweepBlock<T>& q, const UpdateSlot<T>& s, int64_t start, const V (&sums)[kCount]) {
  V squares{};
  for (int v = 0; v < kCount; ++v) {
    finish<kKind>(q, s, start + v * static_cast<int64_t>(sizeof(V) / sizeof(T)), sums[v], squares);
  }
  if constexpr (kKind != kStoreUpdate) *q.squares += total(squares);
}

template <int kCount, typename V>
CE_INLINE void finish_tile(const SweepBlock<T>& q, const UpdateSlot<T>& s, int64_t start, const V (&sums)[kCount]) {
  switch (s.kind) {
    case kStoreUpdate: return finish_sums<kStoreUpdate>(q, s, start, sums);
    case kPlainUpdate: return finish_sums<kPlainUpdate>(q, s, start, sums);
    case kMomentumUpdate: return finish_sums<kMomentumUpdate>(q, s, start, sums);
    case kAdamUpdate: return finish_sums<kAdamUpdate>(q, s, start, sums);
  }
}

inline void column_to_theta(const SweepBlock<T>& q, const TangentNode<T>& n) {
  const T *e = q.row(n.out.e), *da = n.in[0].has() ? q.row(n.in[0].d) : nullptr;
  if (n.row_w >= 0) {
    const UpdateSlot<T>& slot = q.call->slots.at(n.row_w);
    in_tiles<kRows>(n.O, [&](auto outputs, int64_t o) __attribute__((always_inline)) {
      in_runs(n.I, [&](auto count, auto type, int64_t i) __attribute__((always_inline)) {
        using V = decltype(type);
        V sums[decltype(outputs)::value][decltype(count)::value] = {};
        outer(e + o, n.O, 1, n.a + i, n.I, n.R, sums);
        if (da != nullptr) outer(n.delta + o, n.O, 1, da + i, n.I, n.R, sums);
        for (int m = 0; m < outputs; ++m) finish_tile(q, slot, (o + m) * n.I + i, sums[m]);
      });
    });
  }
  if (n.row_b < 0) return;
  finish_as(q, q.call->slots.at(n.row_b), 0, n.O, [&](int64_t o, auto type) __attribute__((always_inline)) {
    auto h = type;
    for (int64_t r = 0; r < n.R; ++r) h += lanes_of(e + r * n.O + o, type);
    return h;
  });
}

inline void column_softmax(const SweepBlock<T>& q, const TangentNode<T>& n) {
  for (int64_t r = 0; r < n.R; ++r) {
    const T *p = n.a + r * n.O, *d = q.row(n.in[0].d + r * n.O);
    T* e = q.row(n.in[0].e + r * n.O);
    const T base = d[most_probable(p, n.O)];
    T mean = T(0);
    for (int64_t c = 0; c < n.O; ++c) softmax_mean(p[c], d[c], base, mean);
    for (int64_t c = 0; c < n.O; ++c) softmax_tangent(n.W[r], p[c], d[c], base, mean, e[c]);
  }
}

#include "tangent_column_norm.inl"

// The entries of a node that is neither linear nor norm nor the softmax.
inline void column_forward_other(const SweepBlock<T>& q, const TangentNode<T>& n) {
  const T *a = n.in[0].has() ? q.row(n.in[0].d) : nullptr, *b = n.in[1].has() ? q.row(n.in[1].d) : nullptr;
  T* z = n.kind == kDiagonalNode ? q.row(n.in[0].e) : q.row(n.out.d);
  for (int64_t i = 0; i < n.R; ++i) {
    z[i] = forward_value(n, i, a == nullptr ? a : a + i, b == nullptr ? b : b + i);
  }
}

inline void column_backward_other(const SweepBlock<T>& q, const TangentNode<T>& n) {
  const T* e = q.row(n.out.e);
  for (int j = 0; j < 2; ++j) {
    if (!n.in[j].has()) continue;
    T* to = q.row(n.in[j].e);
    const T* d = q.row(n.in[j].d);
    for (int64_t i = 0; i < n.R; ++i) {
      const T value = backward_value(n, i, j, e[i], d + i);
      to[i] = n.adds[j] ? to[i] + value : value;
    }
  }
}

// A block with w = 1 and ld = 1.
inline void sweep(const SweepBlock<T>& q) {
  const TangentProgram<T>& program = q.call->program;
  for (int i = 0; i < program.count; ++i) {
    const TangentNode<T>& n = program.node[i];
    if (n.kind == kLinearNode) {
      column_forward(q, n);
    } else if (n.kind == kNormNode) {
      column_norm_forward(q, n);
    } else if (n.kind == kSoftmaxNode) {
      column_softmax(q, n);
    } else {
      column_forward_other(q, n);
    }
  }
  for (int i = program.count - 1; i >= 0; --i) {
    const TangentNode<T>& n = program.node[i];
    if (n.kind == kLinearNode) {
      if (n.in[0].has()) column_to_input(q, n);
      column_to_theta(q, n);
    } else if (n.kind == kNormNode) {
      column_norm_backward(q, n);
    } else if (n.kind == kScaleNode || n.kind == kSumNode) {
      column_backward_other(q, n);
    }
  }
}

inline void update_given(const SweepBlock<T>& q, const UpdateSlot<T>& s) {
  finish_as(q, s, 0, s.rows,
            [&](int64_t i, auto type) __attribute__((always_inline)) { return lanes_of(q.HY + s.first + i, type); });
}

const SweepKernels<T> kernels{sweep, update_given, kLanes};

#undef CE_INLINE
