// The arithmetic of a tangent sweep on one block of columns; compiled once per instruction set and dtype, with the CE_
// macros of ../common/foreach_target.inl. A block's width is a multiple of a vector.

#include "tangent_norm.inl"
#include "tangent_tiles.inl"

inline void linear_forward(const SweepBlock<T>& q, const TangentNode<T>& n, const Packed<T>& p) {
  T* z = q.row(n.out.d);
  const int64_t w = q.w, ld = q.stride;
  if (n.row_w >= 0) {
    for (int64_t o = 0; o < n.O; ++o) {
      const T* V = q.theta + (n.row_w + o * n.I) * q.ld;
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
    const T* c = q.theta + (n.row_b + row % n.O) * q.ld;
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
      const T* V = q.theta + (n.row_w + i) * q.ld;
      product({p.delta, n.R, V, n.I * q.ld, n.O, e_in + i * ld, n.I * ld, n.R, true, false}, w);
    }
  }
  if (n.row_w >= 0) weights(q, n, q.call->slots.at(n.row_w));
  if (n.row_b >= 0) biases(q, n, q.call->slots.at(n.row_b));
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

// A vector of columns, from x on.
struct NormColumns {
  const SweepBlock<T>& q;
  int64_t x;

  CE_INLINE Vec value(int64_t row) const { return load(q.row(row) + x); }
  CE_INLINE Vec theta(int64_t row) const { return load(q.theta + row * q.ld + x); }
  CE_INLINE T number(const T* p) const { return *p; }
  CE_INLINE void put(int64_t row, const Vec& v) const { store(q.row(row) + x, v); }
};

inline void norms_forward(const SweepBlock<T>& q, const TangentNode<T>& n) {
  for (int64_t group = 0; group < n.O; ++group) {
    for (int64_t x = 0; x < q.w; x += kLanes) norm_forward<Vec>(NormColumns{q, x}, n, group);
  }
}

inline void norms_backward(const SweepBlock<T>& q, const TangentNode<T>& n) {
  for (int64_t group = 0; n.in[0].has() && group < n.O; ++group) {
    for (int64_t x = 0; x < q.w; x += kLanes) norm_to_input<Vec>(NormColumns{q, x}, n, group);
  }
  for (int64_t c = 0; (n.row_w >= 0 || n.row_b >= 0) && c < n.C; ++c) {
    for (int64_t x = 0; x < q.w; x += kLanes) {
      Vec gamma[1][1] = {}, beta[1][1] = {};
      norm_to_theta<Vec>(NormColumns{q, x}, n, c, gamma[0][0], beta[0][0]);
      if (n.row_w >= 0) finish_as<1, 1>(q, q.call->slots.at(n.row_w), c, x, gamma);
      if (n.row_b >= 0) finish_as<1, 1>(q, q.call->slots.at(n.row_b), c, x, beta);
    }
  }
}

inline void softmax(const SweepBlock<T>& q, const TangentNode<T>& n) {
  for (int64_t r = 0; r < n.R; ++r) {
    const T* p = n.a + r * n.O;
    const T* d = q.row(n.in[0].d + r * n.O);
    T* e = q.row(n.in[0].e + r * n.O);
    const int64_t top = most_probable(p, n.O) * q.stride;
    for (int64_t x = 0; x < q.w; x += kLanes) {
      const Vec base = load(d + top + x);
      Vec mean{}, value;
      for (int64_t c = 0; c < n.O; ++c) softmax_mean(p[c], load(d + c * q.stride + x), base, mean);
      for (int64_t c = 0; c < n.O; ++c) {
        softmax_tangent(n.W[r], p[c], load(d + c * q.stride + x), base, mean, value);
        store(e + c * q.stride + x, value);
      }
    }
  }
}

inline void sweep(const SweepBlock<T>& q) {
  const TangentProgram<T>& program = q.call->program;
  for (int i = 0; i < program.count; ++i) {
    const TangentNode<T>& n = program.node[i];
    switch (n.kind) {
      case kLinearNode: linear_forward(q, n, q.call->packed[i]); break;
      case kScaleNode: scale_rows(q, n.R, q.row(n.out.d), q.row(n.in[0].d), n.a, T(0), false, nullptr, nullptr); break;
      case kSumNode: sum_forward(q, n); break;
      case kNormNode: norms_forward(q, n); break;
      case kSoftmaxNode: softmax(q, n); break;
      case kDiagonalNode:
        scale_rows(q, n.R, q.row(n.in[0].e), q.row(n.in[0].d), n.a, n.alpha, false, nullptr, nullptr);
        break;
    }
  }
  for (int i = program.count - 1; i >= 0; --i) {
    const TangentNode<T>& n = program.node[i];
    switch (n.kind) {
      case kLinearNode: linear_backward(q, n, q.call->packed[i]); break;
      case kScaleNode: scale_backward(q, n); break;
      case kSumNode: sum_backward(q, n); break;
      case kNormNode: norms_backward(q, n); break;
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
