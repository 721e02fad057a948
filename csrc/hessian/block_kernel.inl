// The arithmetic of hessian_block_ on the CPU; compiled once per instruction set and dtype, with the CE_ macros of
// ../common/foreach_target.inl.
//
// Everything is one primitive, a register tile of rows x columns accumulated over the batch:
//
//     out[r][x] = sum_n c[r][n] w[n][x]          (multiply-adds in the order of n, in every code path)
//
// w is packed in panels of CE_PANEL_VECTORS vectors: [panel][n][column], padded with zeros. Because the order of the
// sum is always the same and a product does not depend on the order of its factors, an entry computed from either side
// of the diagonal has the same bits, whatever tile it fell into and however many threads there are.

#define CE_INLINE inline __attribute__((always_inline))

using T = CE_SCALAR;
typedef T Vec __attribute__((vector_size(CE_VECTOR_BYTES)));
typedef T Loose __attribute__((vector_size(CE_VECTOR_BYTES), aligned(sizeof(T)), may_alias));

constexpr int64_t kLanes = CE_VECTOR_BYTES / sizeof(T);
constexpr int64_t kPanel = CE_PANEL_VECTORS * kLanes;  // columns of a full panel
constexpr int64_t kTileRows = 6;
constexpr int64_t kTransposedRows = 48;  // rows of a tile that is written in both orientations
constexpr int64_t kBuffer = 6144;        // numbers in an L1 row buffer

// Rows of an output: row r starts at base + r stride.
struct Rows {
  T* base;
  int64_t stride;
};

// Columns of the panel that starts at column x0, padded to whole vectors.
inline int64_t panel_columns(int64_t width, int64_t x0) {
  return std::min(kPanel, (width - x0 + kLanes - 1) / kLanes * kLanes);
}

// Numbers in all panels of a packed w [N, width].
inline int64_t packed_size(int64_t N, int64_t width) { return N * ((width + kLanes - 1) / kLanes * kLanes); }

// ---- the tile ----------------------------------------------------------------------------------------------------

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

// ---- writing -----------------------------------------------------------------------------------------------------

// A finished run of a row, from the L1 buffer into H.
void copy_run(T* dst, const T* src, int64_t size, bool stream) {
  int64_t x = 0;
  if (stream && size >= 2 * kLanes) {
    for (; reinterpret_cast<uintptr_t>(dst + x) % CE_VECTOR_BYTES != 0; ++x) dst[x] = src[x];
    for (; x + kLanes <= size; x += kLanes) CE_STREAM(dst + x, *reinterpret_cast<const Loose*>(src + x));
  }
  if (x < size) std::memcpy(dst + x, src + x, (size - x) * sizeof(T));
}

// dst[x][j] = src[j][x] for j < rows, x < columns.
void copy_transposed(Rows dst, const T* src, int64_t stride, int64_t rows, int64_t columns) {
  for (int64_t x = 0; x < columns; ++x) {
    T* out = dst.base + x * dst.stride;
    for (int64_t j = 0; j < rows; ++j) out[j] = src[j * stride + x];
  }
}

// One row of H against all parameters of one layer: weight entry (u, x) is sum_n c[u][n] w[n][x], bias entry u is
// sum_n c[u][n] w_bias[n]. Runs of whole units are assembled in the L1 buffer.
void write_row(T* row, const ParameterSpan& span, const T* c, int64_t units, const T* w, const T* w_bias, int64_t N,
               int64_t width, T* buffer, bool stream) {
  const int64_t group = stream && width > 0 ? std::min(units, kBuffer / width) : 0;
  if (span.has_weight() && group == 0) multiply(c, units, w, N, width, {row + span.weight, width}, {nullptr, 0});
  for (int64_t u = 0; span.has_weight() && group > 0 && u < units; u += group) {
    const int64_t size = std::min(group, units - u);
    multiply(c + u * N, size, w, N, width, {buffer, width}, {nullptr, 0});
    copy_run(row + span.weight + u * width, buffer, size * width, stream);
  }
  if (span.has_bias()) multiply(c, units, w_bias, N, 1, {row + span.bias, 1}, {nullptr, 0});
}

// ---- packing -----------------------------------------------------------------------------------------------------

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

// c[i][n] = M of unit i and column (k, l), from the transposed operands; l = I_t is the bias.
template <int kTerms>
CE_INLINE void column_coefficients(const BlockPlan<T>& plan, int64_t k, int64_t l, T* c) {
  const BlockProblem<T>& q = plan.q;
  const int64_t size = q.O_s * q.N;
  const T* K = kTerms & 1 ? plan.K_t + k * size : nullptr;
  if (l == q.I_t) {
    std::fill(c, c + size, T(0));
    if (kTerms & 1) std::copy_n(K, size, c);
    return;
  }
  const T* a = kTerms & 1 ? plan.rows_t + l * q.N : nullptr;
  const T* J = kTerms & 2 ? plan.J_t + l * size : nullptr;
  const T* delta = kTerms & 2 ? plan.delta_t + k * q.N : nullptr;
  for (int64_t i = 0; i < q.O_s; ++i) {
    for (int64_t n = 0; n < q.N; ++n) {
      const int64_t at = i * q.N + n;
      c[at] = mix<kTerms>(kTerms & 1 ? K[at] : T(0), kTerms & 1 ? a[n] : T(0), kTerms & 2 ? delta[n] : T(0),
                          kTerms & 2 ? J[at] : T(0));
    }
  }
}

void coefficients(const BlockPlan<T>& plan, int64_t k, int64_t l, T* c) {
  if (!plan.q.has_J) return column_coefficients<1>(plan, k, l, c);
  if (!plan.q.has_K) return column_coefficients<2>(plan, k, l, c);
  column_coefficients<3>(plan, k, l, c);
}

// ---- the three parts -----------------------------------------------------------------------------------------------

// Items (j, group of units): the rows (i, j) of a layer's block with itself, where w[n][l] = a_nj a_nl does not depend
// on (i, k). Write bound: whole rows. Else only k >= i is computed, and written to rows (i, j) and (k, j).
void same_range(const BlockPlan<T>& plan, int64_t begin, int64_t end) {
  const BlockProblem<T>& q = plan.q;
  const int64_t unit_groups = groups(q.O_s, kUnitGroup), first_j = q.row.has_weight() ? 0 : q.I_s;
  std::vector<T> scale(q.N), w(packed_size(q.N, q.I_s)), w_bias(packed_size(q.N, 1)), buffer(kBuffer);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t j = first_j + item / unit_groups, i0 = item % unit_groups * kUnitGroup;
    for (int64_t n = 0; n < q.N; ++n) scale[n] = j == q.I_s ? T(1) : q.a_s[n * q.I_s + j];
    pack_inputs(q.a_s, scale.data(), q.N, q.I_s, w.data());
    pack_column(scale.data(), q.N, w_bias.data());
    const int64_t step = j == q.I_s ? q.ld : q.I_s * q.ld;  // from row (i, j) to row (i + 1, j)
    T* row0 = q.H + (j == q.I_s ? q.row.bias : q.row.weight + j) * q.ld;
    for (int64_t i = i0; i < std::min(q.O_s, i0 + kUnitGroup); ++i) {
      T* row = row0 + i * step;
      if (plan.write_bound) {
        write_row(row, q.row, plan.C + i * q.O_s * q.N, q.O_s, w.data(), w_bias.data(), q.N, q.I_s, buffer.data(),
                  plan.stream);
        continue;
      }
      const T* c = plan.C + (i * q.O_s + i) * q.N;
      if (q.row.has_weight()) {
        const int64_t column = q.row.weight + i * q.I_s;
        multiply(c, q.O_s - i, w.data(), q.N, q.I_s, {row + column, q.I_s}, {row + column, step});
      }
      if (q.row.has_bias()) {
        const int64_t column = q.row.bias + i;
        multiply(c, q.O_s - i, w_bias.data(), q.N, 1, {row + column, 1}, {row + column, step});
      }
    }
  }
}

// Rows [0, rows) of unit i against packed columns: written to H[row0 + r, column0 + x] and, unless mirrored rows are
// computed on their own, to the transposed places.
void direct_tiles(const BlockPlan<T>& plan, const T* c, int64_t rows, const T* w, int64_t columns, int64_t row0,
                  int64_t column0, T* buffer) {
  const int64_t stride = columns + kLanes;  // no power of two: the transposed reads spread over the cache's sets
  const int64_t step = plan.write_bound ? kTileRows : kTransposedRows;
  for (int64_t r0 = 0; r0 < rows; r0 += step) {
    const int64_t size = std::min(step, rows - r0);
    multiply(c + r0 * plan.q.N, size, w, plan.q.N, columns, {buffer, stride}, {nullptr, 0});
    T* H = plan.q.H;
    const int64_t ld = plan.q.ld, row = row0 + r0;
    for (int64_t r = 0; r < size; ++r) {
      copy_run(H + (row + r) * ld + column0, buffer + r * stride, columns, plan.stream);
    }
    if (!plan.write_bound) copy_transposed({H + column0 * ld + row, ld}, buffer, stride, size, columns);
  }
}

// Items (i, group of columns): rows (i, j) of s against the weight columns, then the bias columns, of t.
void direct_range(const BlockPlan<T>& plan, int64_t begin, int64_t end) {
  const BlockProblem<T>& q = plan.q;
  const int64_t group = column_group(plan.write_bound);
  const int64_t weights = q.col.has_weight() ? q.O_t * q.I_t : 0, biases = q.col.has_bias() ? q.O_t : 0;
  const int64_t weight_groups = groups(weights, group), all_groups = weight_groups + groups(biases, group);
  std::vector<T> w(packed_size(q.N, group)), buffer((group + kLanes) * kTransposedRows);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t i = item / all_groups, g = item % all_groups;
    const bool bias = g >= weight_groups;
    const int64_t x0 = (bias ? g - weight_groups : g) * group, size = std::min(group, (bias ? biases : weights) - x0);
    if (bias) {
      pack_bias_columns(q, i, x0, size, w.data());
    } else {
      pack_weight_columns(q, i, x0, size, w.data());
    }
    const int64_t column = (bias ? q.col.bias : q.col.weight) + x0;
    if (q.row.has_weight()) {
      direct_tiles(plan, plan.rows_s, q.I_s, w.data(), size, q.row.weight + i * q.I_s, column, buffer.data());
    }
    if (q.row.has_bias()) {
      direct_tiles(plan, plan.rows_s + q.I_s * q.N, 1, w.data(), size, q.row.bias + i, column, buffer.data());
    }
  }
}

// Items (k, l), l = I_t the bias: the rows of t against all columns of s.
void mirrored_range(const BlockPlan<T>& plan, int64_t begin, int64_t end) {
  const BlockProblem<T>& q = plan.q;
  const int64_t first_l = q.col.has_weight() ? 0 : q.I_t, per_unit = q.I_t - first_l + (q.col.has_bias() ? 1 : 0);
  std::vector<T> c(q.O_s * q.N), w(packed_size(q.N, q.I_s)), w_bias(packed_size(q.N, 1)), buffer(kBuffer);
  pack_inputs(q.a_s, nullptr, q.N, q.I_s, w.data());
  pack_column(nullptr, q.N, w_bias.data());
  for (int64_t item = begin; item < end; ++item) {
    const int64_t k = item / per_unit, l = first_l + item % per_unit;
    coefficients(plan, k, l, c.data());
    const int64_t row = l == q.I_t ? q.col.bias + k : q.col.weight + k * q.I_t + l;
    write_row(q.H + row * q.ld, q.row, c.data(), q.O_s, w.data(), w_bias.data(), q.N, q.I_s, buffer.data(),
              plan.stream);
  }
}

const BlockKernels<T> kernels{same_range, direct_range, mirrored_range};

#undef CE_INLINE
