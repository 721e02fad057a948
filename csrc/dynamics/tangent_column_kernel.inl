// The arithmetic of a tangent sweep on a single column that lies contiguous in memory: vectors run along the inputs of
// a layer instead of along columns. Compiled once per instruction set and dtype (../common/foreach_target.inl).

#define CE_INLINE inline __attribute__((always_inline))

using T = CE_SCALAR;
typedef T Vec __attribute__((vector_size(CE_VECTOR_BYTES)));
typedef T Loose __attribute__((vector_size(CE_VECTOR_BYTES), aligned(sizeof(T)), may_alias));

constexpr int64_t kLanes = CE_VECTOR_BYTES / sizeof(T);
constexpr int kRows = 4;  // dot products side by side

CE_INLINE Vec load(const T* p) { return *reinterpret_cast<const Loose*>(p); }
CE_INLINE void store(T* p, Vec v) { *reinterpret_cast<Loose*>(p) = v; }

CE_INLINE T total(Vec v) {
  T sum = v[0];
  for (int64_t lane = 1; lane < kLanes; ++lane) sum += v[lane];
  return sum;
}

// z[r step] += rows[r ld] . x for M rows of n numbers.
template <int M>
CE_INLINE void dots(const T* rows, int64_t ld, const T* x, int64_t n, T* z, int64_t step) {
  Vec acc[M];
  for (int m = 0; m < M; ++m) acc[m] = Vec{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec column = load(x + i);
    for (int m = 0; m < M; ++m) acc[m] += load(rows + m * ld + i) * column;
  }
  for (int m = 0; m < M; ++m) {
    T sum = total(acc[m]);
    for (int64_t j = i; j < n; ++j) sum += rows[m * ld + j] * x[j];
    z[m * step] += sum;
  }
}

inline void all_dots(const T* rows, int64_t ld, int64_t M, const T* x, int64_t n, T* z, int64_t step) {
  int64_t m = 0;
  for (; m + kRows <= M; m += kRows) dots<kRows>(rows + m * ld, ld, x, n, z + m * step, step);
  for (; m < M; ++m) dots<1>(rows + m * ld, ld, x, n, z + m * step, step);
}

inline void column_forward(const SweepBlock<T>& q, const TangentNode<T>& n) {
  T* z = q.row(n.out.d);
  for (int64_t at = 0; at < n.R * n.O; ++at) z[at] = n.row_b < 0 ? T(0) : q.theta[n.row_b + at % n.O];
  for (int64_t o = 0; n.row_w >= 0 && o < n.O; ++o) {
    all_dots(n.a, n.I, n.R, q.theta + n.row_w + o * n.I, n.I, z + o, n.O);
  }
  for (int64_t r = 0; n.in[0].has() && r < n.R; ++r) {
    all_dots(n.W, n.I, n.O, q.row(n.in[0].d + r * n.I), n.I, z + r * n.O, 1);
  }
}

// y += factor x for n numbers.
CE_INLINE void add_multiple(T factor, const T* x, int64_t n, T* y) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(y + i) + factor * load(x + i));
  for (; i < n; ++i) y[i] += factor * x[i];
}

inline void column_to_input(const SweepBlock<T>& q, const TangentNode<T>& n) {
  for (int64_t r = 0; r < n.R; ++r) {
    T* e_in = q.row(n.in[0].e + r * n.I);
    const T *e = q.row(n.out.e + r * n.O), *delta = n.delta + r * n.O;
    if (!n.adds[0]) std::fill(e_in, e_in + n.I, T(0));
    for (int64_t o = 0; o < n.O; ++o) {
      add_multiple(e[o], n.W + o * n.I, n.I, e_in);
      if (n.row_w >= 0) add_multiple(delta[o], q.theta + n.row_w + o * n.I, n.I, e_in);
    }
  }
}

CE_INLINE T lanes_of(const T* p, T) { return *p; }
CE_INLINE Vec lanes_of(const T* p, const Vec&) { return load(p); }
CE_INLINE void put(T* p, T v) { *p = v; }
CE_INLINE void put(T* p, const Vec& v) { store(p, v); }

// Entries i of a slot, one or a vector of them, have the products h: stores them, or updates Y. Adds to squares.
template <int kKind, typename V>
CE_INLINE void finish(const SweepBlock<T>& q, const UpdateSlot<T>& s, int64_t i, const V& h, V& squares) {
  if constexpr (kKind == kStoreUpdate) {
    put(q.out + s.first + i, h);
  } else {
    V d = lanes_of(q.Y + s.first + i, V{}), v{}, u{};
    if constexpr (kKind != kPlainUpdate) v = lanes_of(q.Y + s.buffer[0] + i, V{});
    if constexpr (kKind == kAdamUpdate) {
      u = lanes_of(q.Y + s.buffer[1] + i, V{});
      update<kKind>(s, lanes_of(s.q + i, V{}), lanes_of(s.A + i, V{}), lanes_of(s.B + i, V{}), h, d, v, u);
      put(q.Y + s.buffer[1] + i, u);
    } else {
      update<kKind>(s, V{}, V{}, V{}, h, d, v, u);
    }
    put(q.Y + s.first + i, d);
    if constexpr (kKind != kPlainUpdate) put(q.Y + s.buffer[0] + i, v);
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

inline void column_to_theta(const SweepBlock<T>& q, const TangentNode<T>& n) {
  const T *e = q.row(n.out.e), *da = n.in[0].has() ? q.row(n.in[0].d) : nullptr;
  for (int64_t o = 0; n.row_w >= 0 && o < n.O; ++o) {
    finish_as(q, q.call->slots.at(n.row_w), o * n.I, n.I, [&](int64_t i, auto type) __attribute__((always_inline)) {
      auto h = type;
      for (int64_t r = 0; r < n.R; ++r) {
        h += e[r * n.O + o] * lanes_of(n.a + r * n.I + i, type);
        if (da != nullptr) h += n.delta[r * n.O + o] * lanes_of(da + r * n.I + i, type);
      }
      return h;
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

// The entries of a node that is neither linear nor the softmax.
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
