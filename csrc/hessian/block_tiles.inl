// The register tile of hessian_block_ and the packing of what it reads. Part of block_kernel.inl.

// The first `columns` of V vectors.
template <int V>
CE_INLINE void store(T* dst, const Vec (&value)[V], int64_t columns) {
  for (int v = 0; v < V - 1; ++v) *reinterpret_cast<Loose*>(dst + v * kLanes) = value[v];
  const int64_t tail = columns - (V - 1) * kLanes;
  if (tail == kLanes) {
    *reinterpret_cast<Loose*>(dst + (V - 1) * kLanes) = value[V - 1];
  } else {
    for (int64_t x = 0; x < tail; ++x) dst[(V - 1) * kLanes + x] = value[V - 1][x];
  }
}

template <int R, int V>
CE_INLINE void tile(const T* c, const T* w, int64_t N, int64_t columns, Rows first, Rows second) {
  Vec acc[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) acc[r][v] = Vec{};
  }
  for (int64_t n = 0; n < N; ++n, w += V * kLanes) {
    Vec column[V];
    for (int v = 0; v < V; ++v) column[v] = *reinterpret_cast<const Loose*>(w + v * kLanes);
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) acc[r][v] += c[r * N + n] * column[v];
    }
  }
  for (int r = 0; r < R; ++r) store(first.base + r * first.stride, acc[r], columns);
  if (second.base == nullptr) return;
  for (int r = 0; r < R; ++r) store(second.base + r * second.stride, acc[r], columns);
}

template <int R>
CE_INLINE void tile_of(int64_t vectors, const T* c, const T* w, int64_t N, int64_t columns, Rows first, Rows second) {
  switch (vectors) {
    case 1: return tile<R, 1>(c, w, N, columns, first, second);
    case 2: return tile<R, 2>(c, w, N, columns, first, second);
#if CE_PANEL_VECTORS == 4
    case 3: return tile<R, 3>(c, w, N, columns, first, second);
    case 4: return tile<R, 4>(c, w, N, columns, first, second);
#endif
  }
}

// out[r][x] for r < rows, x < width; c [rows, N], w packed. Written to `first` and, unless its base is null, `second`.
void multiply(const T* c, int64_t rows, const T* w, int64_t N, int64_t width, Rows first, Rows second) {
  const int64_t blocks = groups(rows, kTileRows);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t r0 = b * rows / blocks, size = (b + 1) * rows / blocks - r0;
    for (int64_t x0 = 0; x0 < width; x0 += kPanel) {
      const int64_t vectors = panel_columns(width, x0) / kLanes, columns = std::min(kPanel, width - x0);
      const T *cr = c + r0 * N, *wx = w + x0 * N;
      const Rows one{first.base + r0 * first.stride + x0, first.stride};
      const Rows two{second.base == nullptr ? nullptr : second.base + r0 * second.stride + x0, second.stride};
      switch (size) {
        case 1: tile_of<1>(vectors, cr, wx, N, columns, one, two); break;
        case 2: tile_of<2>(vectors, cr, wx, N, columns, one, two); break;
        case 3: tile_of<3>(vectors, cr, wx, N, columns, one, two); break;
        case 4: tile_of<4>(vectors, cr, wx, N, columns, one, two); break;
        case 5: tile_of<5>(vectors, cr, wx, N, columns, one, two); break;
        default: tile_of<6>(vectors, cr, wx, N, columns, one, two); break;
      }
    }
  }
}

// Packs w[n][x] = scale[n] a[n][x], x < width; a [N, width]. scale = null stands for ones.
void pack_inputs(const T* a, const T* scale, int64_t N, int64_t width, T* w) {
  for (int64_t x0 = 0; x0 < width; x0 += kPanel) {
    const int64_t padded = panel_columns(width, x0), columns = std::min(padded, width - x0);
    for (int64_t n = 0; n < N; ++n, w += padded) {
      const T s = scale == nullptr ? T(1) : scale[n];
      const T* from = a + n * width + x0;
      for (int64_t x = 0; x < columns; ++x) w[x] = s * from[x];
      std::fill(w + columns, w + padded, T(0));
    }
  }
}

// A single column as a packed w [N, 1]; column = null stands for ones.
void pack_column(const T* column, int64_t N, T* w) {
  std::fill(w, w + packed_size(N, 1), T(0));
  for (int64_t n = 0; n < N; ++n) w[n * kLanes] = column == nullptr ? T(1) : column[n];
}

// K a + delta J, the one way this number is formed; kTerms says which terms exist (1: K a, 2: delta J, 3: both).
template <int kTerms>
CE_INLINE T mix(T k, T a, T delta, T j) {
  if constexpr (kTerms == 1) return k * a;
  if constexpr (kTerms == 2) return delta * j;
  return CE_FMA(delta, j, k * a);
}

// M[n][x] for the weight columns [x0, x0 + size) of t, x = k I_t + l, of unit i, packed.
template <int kTerms>
CE_INLINE void pack_columns(const BlockProblem<T>& q, int64_t i, int64_t x0, int64_t size, T* w) {
  for (int64_t p = 0; p < size; p += kPanel) {
    const int64_t padded = panel_columns(size, p), columns = std::min(padded, size - p);
    for (int64_t n = 0; n < q.N; ++n, w += padded) {
      for (int64_t x = 0; x < columns;) {
        const int64_t k = (x0 + p + x) / q.I_t, l = (x0 + p + x) % q.I_t, run = std::min(q.I_t - l, columns - x);
        const T K = kTerms & 1 ? q.K[(i * q.N + n) * q.O_t + k] : T(0);
        const T delta = kTerms & 2 ? q.delta_t[n * q.O_t + k] : T(0);
        const T* a = kTerms & 1 ? q.a_t + n * q.I_t + l : nullptr;
        const T* J = kTerms & 2 ? q.J + (i * q.N + n) * q.I_t + l : nullptr;
        for (int64_t y = 0; y < run; ++y) {
          w[x + y] = mix<kTerms>(K, kTerms & 1 ? a[y] : T(0), delta, kTerms & 2 ? J[y] : T(0));
        }
        x += run;
      }
      std::fill(w + columns, w + padded, T(0));
    }
  }
}

void pack_weight_columns(const BlockProblem<T>& q, int64_t i, int64_t x0, int64_t size, T* w) {
  if (!q.has_J) return pack_columns<1>(q, i, x0, size, w);
  if (!q.has_K) return pack_columns<2>(q, i, x0, size, w);
  pack_columns<3>(q, i, x0, size, w);
}

// The same for the bias columns [k0, k0 + size): M[n][k] = K[i][n][k].
void pack_bias_columns(const BlockProblem<T>& q, int64_t i, int64_t k0, int64_t size, T* w) {
  for (int64_t p = 0; p < size; p += kPanel) {
    const int64_t padded = panel_columns(size, p), columns = std::min(padded, size - p);
    for (int64_t n = 0; n < q.N; ++n, w += padded) {
      std::fill(w, w + padded, T(0));
      if (q.has_K) std::copy_n(q.K + (i * q.N + n) * q.O_t + k0 + p, columns, w);
    }
  }
}

// The inputs of row j of a layer with itself, w[n][l] = a_nj a_nl, and the same with the bias as l; packed.
struct SameInputs {
  std::vector<T> scale;
  Aligned w, w_bias;

  explicit SameInputs(const BlockProblem<T>& q) : scale(q.N), w(packed_size(q.N, q.I_s)), w_bias(packed_size(q.N, 1)) {}

  void pack(const BlockProblem<T>& q, int64_t j) {
    for (int64_t n = 0; n < q.N; ++n) scale[n] = j == q.I_s ? T(1) : q.a_s[n * q.I_s + j];
    pack_inputs(q.a_s, scale.data(), q.N, q.I_s, w.data());
    pack_column(scale.data(), q.N, w_bias.data());
  }
};

// Items (j, group of units): calls body(inputs, i, row of (i, j), from row (i, j) to row (i + 1, j)) for their units.
template <typename Body>
CE_INLINE void for_each_same(const BlockProblem<T>& q, int64_t begin, int64_t end, const Body& body) {
  const int64_t unit_groups = groups(q.O_s, kUnitGroup), first_j = q.row.has_weight() ? 0 : q.I_s;
  SameInputs inputs(q);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t j = first_j + item / unit_groups, i0 = item % unit_groups * kUnitGroup;
    inputs.pack(q, j);
    const int64_t step = j == q.I_s ? q.ld : q.I_s * q.ld;
    T* row0 = q.H + (j == q.I_s ? q.row.bias : q.row.weight + j) * q.ld;
    for (int64_t i = i0; i < std::min(q.O_s, i0 + kUnitGroup); ++i) body(inputs, i, row0 + i * step, step);
  }
}

// Columns of t in H, packed: the weights' or the biases'.
struct ColumnGroup {
  const T* w;
  int64_t first, size;
};

// Items (i, group of columns), of the weights, then of the biases: calls body(columns, c, rows, row) for the rows of
// unit i's weights, and of its bias; c [rows, N], the first row of H.
template <typename Body>
CE_INLINE void for_each_direct(const BlockPlan<T>& plan, int64_t group, int64_t begin, int64_t end, const Body& body) {
  const BlockProblem<T>& q = plan.q;
  const int64_t weights = q.col.has_weight() ? q.O_t * q.I_t : 0, biases = q.col.has_bias() ? q.O_t : 0;
  const int64_t weight_groups = groups(weights, group), all_groups = weight_groups + groups(biases, group);
  Aligned w(packed_size(q.N, group));
  for (int64_t item = begin; item < end; ++item) {
    const int64_t i = item / all_groups, g = item % all_groups;
    const bool bias = g >= weight_groups;
    const int64_t x0 = (bias ? g - weight_groups : g) * group, size = std::min(group, (bias ? biases : weights) - x0);
    if (bias) {
      pack_bias_columns(q, i, x0, size, w.data());
    } else {
      pack_weight_columns(q, i, x0, size, w.data());
    }
    const ColumnGroup columns{w.data(), (bias ? q.col.bias : q.col.weight) + x0, size};
    if (q.row.has_weight()) body(columns, plan.rows_s, q.I_s, q.row.weight + i * q.I_s);
    if (q.row.has_bias()) body(columns, plan.rows_s + q.I_s * q.N, 1, q.row.bias + i);
  }
}
