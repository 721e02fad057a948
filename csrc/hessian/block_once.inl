// hessian_block_ where arithmetic bounds the time: an entry is computed once and written to all its places. Part of
// block_kernel.inl.

constexpr int64_t kTransposedRows = 48;  // rows of a tile that is written in both orientations

// dst[x][j] = src[j][x] for j < rows, x < columns.
void copy_transposed(Rows dst, const T* src, int64_t stride, int64_t rows, int64_t columns) {
  for (int64_t x = 0; x < columns; ++x) {
    T* out = dst.base + x * dst.stride;
    for (int64_t j = 0; j < rows; ++j) out[j] = src[j * stride + x];
  }
}

// Items (j, group of units): k >= i of the rows (i, j) of a layer's block with itself, written to (i, j) and (k, j).
void same_once(const BlockPlan<T>& plan, int64_t begin, int64_t end) {
  const BlockProblem<T>& q = plan.q;
  for_each_same(q, begin, end, [&](const SameInputs& inputs, int64_t i, T* row, int64_t step) {
    const T* c = plan.C + (i * q.O_s + i) * q.N;
    if (q.row.has_weight()) {
      const int64_t column = q.row.weight + i * q.I_s;
      multiply(c, q.O_s - i, inputs.w.data(), q.N, q.I_s, {row + column, q.I_s}, {row + column, step});
    }
    if (q.row.has_bias()) {
      const int64_t column = q.row.bias + i;
      multiply(c, q.O_s - i, inputs.w_bias.data(), q.N, 1, {row + column, 1}, {row + column, step});
    }
  });
}

// Rows [0, rows) of a unit against packed columns, written to H[row + r, first + x] and to the transposed places.
void tiles_once(const BlockPlan<T>& plan, const ColumnGroup& columns, const T* c, int64_t rows, int64_t row,
                T* buffer) {
  const int64_t N = plan.q.N, ld = plan.q.ld, width = columns.size;
  const int64_t stride = width + kLanes;  // no power of two: the transposed reads spread over the cache's sets
  T* H = plan.q.H;
  for (int64_t r0 = 0; r0 < rows; r0 += kTransposedRows) {
    const int64_t size = std::min(kTransposedRows, rows - r0);
    multiply(c + r0 * N, size, columns.w, N, width, {buffer, stride}, {nullptr, 0});
    T* to = H + (row + r0) * ld + columns.first;
    for (int64_t r = 0; r < size; ++r) std::memcpy(to + r * ld, buffer + r * stride, width * sizeof(T));
    copy_transposed({H + columns.first * ld + row + r0, ld}, buffer, stride, size, width);
  }
}

// Items (i, group of columns): the rows of s against the columns of t, and the transposed places.
void direct_once(const BlockPlan<T>& plan, int64_t begin, int64_t end) {
  const Aligned buffer((kOnceGroup + kLanes) * kTransposedRows);
  for_each_direct(plan, kOnceGroup, begin, end, [&](const ColumnGroup& columns, const T* c, int64_t rows, int64_t row) {
    tiles_once(plan, columns, c, rows, row, buffer.data());
  });
}
