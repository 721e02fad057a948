// Normalisation on a single column: part of tangent_column_kernel.inl.

#include "tangent_norm.inl"

// The column itself; of neighbouring groups, where a row has one number of each, a vector at a time.
template <typename V>
struct NormColumn {
  const SweepBlock<T>& q;

  CE_INLINE V value(int64_t row) const { return lanes_of(q.row(row), V{}); }
  CE_INLINE V theta(int64_t row) const { return lanes_of(q.theta + row, V{}); }
  CE_INLINE V number(const T* p) const { return lanes_of(p, V{}); }
  CE_INLINE void put(int64_t row, const V& v) const { store_lanes(q.row(row), v); }
};

// Calls body(type, group) for vectors of groups where they lie side by side, with a gamma each, and for the others.
template <typename Body>
CE_INLINE void for_groups(const TangentNode<T>& n, const Body& body) {
  const bool together = n.R == 1 && n.L == 1 && (n.C == n.O || n.W == nullptr);
  int64_t group = 0;
  for (; together && group + kLanes <= n.O; group += kLanes) body(Vec{}, group);
  for (; group < n.O; ++group) body(T{}, group);
}

inline void column_norm_forward(const SweepBlock<T>& q, const TangentNode<T>& n) {
  for_groups(n, [&](auto type, int64_t group) __attribute__((always_inline)) {
    norm_forward<decltype(type)>(NormColumn<decltype(type)>{q}, n, group);
  });
}

// (H y)_gamma and (H y)_beta from parameter c on.
template <typename V>
CE_INLINE void column_norm_to_theta(const SweepBlock<T>& q, const TangentNode<T>& n, int64_t c) {
  V gamma[1] = {}, beta[1] = {};
  norm_to_theta<V>(NormColumn<V>{q}, n, c, gamma[0], beta[0]);
  if (n.row_w >= 0) finish_tile(q, q.call->slots.at(n.row_w), c, gamma);
  if (n.row_b >= 0) finish_tile(q, q.call->slots.at(n.row_b), c, beta);
}

inline void column_norm_backward(const SweepBlock<T>& q, const TangentNode<T>& n) {
  if (n.in[0].has()) {
    for_groups(n, [&](auto type, int64_t group) __attribute__((always_inline)) {
      norm_to_input<decltype(type)>(NormColumn<decltype(type)>{q}, n, group);
    });
  }
  if (n.row_w < 0 && n.row_b < 0) return;
  int64_t c = 0;
  for (; n.L == 1 && c + kLanes <= n.C; c += kLanes) column_norm_to_theta<Vec>(q, n, c);
  for (; c < n.C; ++c) column_norm_to_theta<T>(q, n, c);
}
