// hessian_block_ where writing bounds the time: every entry is computed for each of its places, and H is written row by
// row, in long runs, around the caches where it exceeds them. Part of block_kernel.inl.

constexpr int64_t kBuffer = 6144;  // numbers in an L1 row buffer

// A finished run of a row, from the L1 buffer into H.
void copy_run(T* dst, const T* src, int64_t size, bool stream) {
  int64_t x = 0;
  if (stream && size >= 2 * kLanes) {
    for (; reinterpret_cast<uintptr_t>(dst + x) % CE_VECTOR_BYTES != 0; ++x) dst[x] = src[x];
    for (; x + kLanes <= size; x += kLanes) CE_STREAM(dst + x, *reinterpret_cast<const Loose*>(src + x));
  }
  if (x < size) std::memcpy(dst + x, src + x, (size - x) * sizeof(T));
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

// Items (j, group of units): whole rows (i, j) of a layer's block with itself.
void same_by_rows(const BlockPlan<T>& plan, int64_t begin, int64_t end) {
  const BlockProblem<T>& q = plan.q;
  std::vector<T> buffer(kBuffer);
  for_each_same(q, begin, end, [&](const SameInputs& inputs, int64_t i, T* row, int64_t) {
    write_row(row, q.row, plan.C + i * q.O_s * q.N, q.O_s, inputs.w.data(), inputs.w_bias.data(), q.N, q.I_s,
              buffer.data(), plan.stream);
  });
}

// Items (i, group of columns): the rows of s against the columns of t.
void direct_by_rows(const BlockPlan<T>& plan, int64_t begin, int64_t end) {
  const int64_t N = plan.q.N, ld = plan.q.ld, stride = kRowGroup + kLanes;
  Aligned buffer(stride * kTileRows);
  for_each_direct(plan, kRowGroup, begin, end, [&](const ColumnGroup& columns, const T* c, int64_t rows, int64_t row) {
    for (int64_t r0 = 0; r0 < rows; r0 += kTileRows) {
      const int64_t size = std::min(kTileRows, rows - r0);
      multiply(c + r0 * N, size, columns.w, N, columns.size, {buffer.data(), stride}, {nullptr, 0});
      T* to = plan.q.H + (row + r0) * ld + columns.first;
      for (int64_t r = 0; r < size; ++r) copy_run(to + r * ld, buffer.data() + r * stride, columns.size, plan.stream);
    }
  });
}

// Items (k, l), l = I_t the bias: the rows of t against all columns of s.
void mirrored_by_rows(const BlockPlan<T>& plan, int64_t begin, int64_t end) {
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
