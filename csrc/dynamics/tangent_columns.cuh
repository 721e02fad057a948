// The nodes of a tangent sweep on the columns of one thread block, and what becomes of the rows of H y. Formulas:
// tangent_sweep.h; how the block works: tangent_sweep.cuh.
#pragma once

#include <cuda_runtime.h>

#include "../losses/cross_entropy_math.h"
#include "tangent_program.h"

namespace chaos_ext {

// Shared memory of a size that the launch decides.
template <typename T>
__device__ inline T* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ double chaos_ext_dynamic_shared[];
  return reinterpret_cast<T*>(chaos_ext_dynamic_shared);
#else
  return static_cast<T*>(emulator::dynamic_shared());
#endif
}

// The columns of one thread block.
template <typename T>
struct SweepColumns {
  const T* V;  // theta's rows, [P, ldv]: in shared memory, or Y's own
  int64_t ldv;
  T* Y;  // at the block's first column
  int64_t ld;
  T* out;  // of tangent_product, else null
  int64_t ld_out;
  T* scratch;      // [rows, w]
  int w, columns;  // columns <= w are there

  __device__ T* row(int64_t i) const { return scratch + i * w; }
  __device__ int x() const { return static_cast<int>(threadIdx.x) % w; }
  __device__ int64_t first() const { return threadIdx.x / w; }
  __device__ int64_t step() const { return blockDim.x / w; }
  // The own column; columns that are not there repeat the last one, and are never written to Y.
  __device__ int read_x() const { return x() < columns ? x() : columns - 1; }
};

template <typename T>
__device__ inline void linear_forward(const SweepColumns<T>& q, const TangentNode<T>& n) {
  const int x = q.x(), rx = q.read_x();
  for (int64_t at = q.first(); at < n.R * n.O; at += q.step()) {
    const int64_t r = at / n.O, o = at % n.O;
    T sum = n.row_b < 0 ? T(0) : q.V[(n.row_b + o) * q.ldv + rx];
    if (n.row_w >= 0) {
      const T* V = q.V + (n.row_w + o * n.I) * q.ldv + rx;
      for (int64_t i = 0; i < n.I; ++i) sum += n.a[r * n.I + i] * V[i * q.ldv];
    }
    if (n.in[0].has()) {
      const T* da = q.row(n.in[0].d + r * n.I) + x;
      for (int64_t i = 0; i < n.I; ++i) sum += n.W[o * n.I + i] * da[i * q.w];
    }
    q.row(n.out.d + at)[x] = sum;
  }
}

// d(delta_in), before any row of theta is overwritten.
template <typename T>
__device__ inline void linear_to_input(const SweepColumns<T>& q, const TangentNode<T>& n) {
  const int x = q.x(), rx = q.read_x();
  for (int64_t at = q.first(); at < n.R * n.I; at += q.step()) {
    const int64_t r = at / n.I, i = at % n.I;
    T sum = n.adds[0] ? q.row(n.in[0].e + at)[x] : T(0);
    const T* e = q.row(n.out.e + r * n.O) + x;
    for (int64_t o = 0; o < n.O; ++o) sum += n.W[o * n.I + i] * e[o * q.w];
    if (n.row_w >= 0) {
      const T* V = q.V + (n.row_w + i) * q.ldv + rx;
      for (int64_t o = 0; o < n.O; ++o) sum += n.delta[r * n.O + o] * V[o * n.I * q.ldv];
    }
    q.row(n.in[0].e + at)[x] = sum;
  }
}

// Stores h, or updates the state's rows of entry i of a slot; returns the sum of squares of what was written.
template <int kKind, typename T>
__device__ inline T finish(const SweepColumns<T>& q, const UpdateSlot<T>& s, int64_t i, T h, int x) {
  if constexpr (kKind == kStoreUpdate) {
    q.out[(s.first + i) * q.ld_out + x] = h;
    return T(0);
  } else {
    T *y = q.Y + (s.first + i) * q.ld + x, *b0 = q.Y + (s.buffer[0] + i) * q.ld + x;
    T *b1 = q.Y + (s.buffer[1] + i) * q.ld + x, d = *y, v = T(0), u = T(0);
    if constexpr (kKind != kPlainUpdate) v = *b0;
    if constexpr (kKind == kAdamUpdate) {
      u = *b1;
      update<kKind>(s, s.q[i], s.A[i], s.B[i], h, d, v, u);
    } else {
      update<kKind>(s, T(0), T(0), T(0), h, d, v, u);
    }
    *y = d;
    if constexpr (kKind != kPlainUpdate) *b0 = v;
    if constexpr (kKind == kAdamUpdate) *b1 = u;
    return d * d + v * v + u * u;
  }
}

template <typename T>
__device__ inline T finish_as(const SweepColumns<T>& q, const UpdateSlot<T>& s, int64_t i, T h, int x) {
  if (s.kind == kStoreUpdate) return finish<kStoreUpdate>(q, s, i, h, x);
  if (s.kind == kPlainUpdate) return finish<kPlainUpdate>(q, s, i, h, x);
  if (s.kind == kMomentumUpdate) return finish<kMomentumUpdate>(q, s, i, h, x);
  return finish<kAdamUpdate>(q, s, i, h, x);
}

// (H y)_W and (H y)_b of one layer; returns this thread's sum of squares.
template <typename T>
__device__ inline T linear_to_theta(const SweepColumns<T>& q, const TangentNode<T>& n, const UpdateList<T>& slots) {
  const int x = q.x();
  T squares = T(0);
  if (x >= q.columns) return squares;
  for (int64_t at = q.first(); n.row_w >= 0 && at < n.O * n.I; at += q.step()) {
    const int64_t o = at / n.I, i = at % n.I;
    const T* e = q.row(n.out.e + o) + x;
    T h = T(0);
    for (int64_t r = 0; r < n.R; ++r) h += n.a[r * n.I + i] * e[r * n.O * q.w];
    if (n.in[0].has()) {
      const T* da = q.row(n.in[0].d + i) + x;
      for (int64_t r = 0; r < n.R; ++r) h += n.delta[r * n.O + o] * da[r * n.I * q.w];
    }
    squares += finish_as(q, slots.at(n.row_w), at, h, x);
  }
  for (int64_t o = q.first(); n.row_b >= 0 && o < n.O; o += q.step()) {
    const T* e = q.row(n.out.e + o) + x;
    T h = T(0);
    for (int64_t r = 0; r < n.R; ++r) h += e[r * n.O * q.w];
    squares += finish_as(q, slots.at(n.row_b), o, h, x);
  }
  return squares;
}

template <typename T>
__device__ inline void softmax_row(const SweepColumns<T>& q, const TangentNode<T>& n, int64_t r) {
  const T* p = n.a + r * n.O;
  const T* d = q.row(n.in[0].d + r * n.O) + q.x();
  T* e = q.row(n.in[0].e + r * n.O) + q.x();
  const T base = d[most_probable(p, n.O) * q.w];
  T mean = T(0);
  for (int64_t c = 0; c < n.O; ++c) softmax_mean(p[c], d[c * q.w], base, mean);
  for (int64_t c = 0; c < n.O; ++c) softmax_tangent(n.W[r], p[c], d[c * q.w], base, mean, e[c * q.w]);
}

#include "tangent_norm.inl"

// The thread's column. One that is not there reads what the last one has.
template <typename T>
struct NormThread {
  const SweepColumns<T>& q;

  __device__ T value(int64_t row) const { return q.row(row)[q.x()]; }
  __device__ T theta(int64_t row) const { return q.V[row * q.ldv + q.read_x()]; }
  __device__ T number(const T* p) const { return *p; }
  __device__ void put(int64_t row, T v) const { q.row(row)[q.x()] = v; }
};

template <typename T>
__device__ inline void norms_forward(const SweepColumns<T>& q, const TangentNode<T>& n) {
  for (int64_t group = q.first(); group < n.O; group += q.step()) norm_forward<T>(NormThread<T>{q}, n, group);
}

// d(delta_in), before any row of theta is overwritten.
template <typename T>
__device__ inline void norms_to_input(const SweepColumns<T>& q, const TangentNode<T>& n) {
  for (int64_t group = q.first(); n.in[0].has() && group < n.O; group += q.step()) {
    norm_to_input<T>(NormThread<T>{q}, n, group);
  }
}

// (H y)_gamma and (H y)_beta; returns this thread's sum of squares.
template <typename T>
__device__ inline T norm_to_slots(const SweepColumns<T>& q, const TangentNode<T>& n, const UpdateList<T>& slots) {
  const int x = q.x();
  T squares = T(0);
  if (x >= q.columns || (n.row_w < 0 && n.row_b < 0)) return squares;
  for (int64_t c = q.first(); c < n.C; c += q.step()) {
    T gamma = T(0), beta = T(0);
    norm_to_theta<T>(NormThread<T>{q}, n, c, gamma, beta);
    if (n.row_w >= 0) squares += finish_as(q, slots.at(n.row_w), c, gamma, x);
    if (n.row_b >= 0) squares += finish_as(q, slots.at(n.row_b), c, beta, x);
  }
  return squares;
}

// One row of a node that is neither linear nor norm nor the softmax.
template <typename T>
__device__ inline void other_forward(const SweepColumns<T>& q, const TangentNode<T>& n, int64_t r) {
  const T* in[2] = {};
  for (int i = 0; i < 2; ++i) {
    if (n.in[i].has()) in[i] = q.row(n.in[i].d + r) + q.x();
  }
  q.row((n.kind == kDiagonalNode ? n.in[0].e : n.out.d) + r)[q.x()] = forward_value(n, r, in[0], in[1]);
}

template <typename T>
__device__ inline void other_backward(const SweepColumns<T>& q, const TangentNode<T>& n, int64_t r) {
  const int x = q.x();
  for (int i = 0; i < 2; ++i) {
    if (!n.in[i].has()) continue;
    T* to = q.row(n.in[i].e + r) + x;
    const T value = backward_value(n, r, i, q.row(n.out.e + r)[x], q.row(n.in[i].d + r) + x);
    *to = n.adds[i] ? *to + value : value;
  }
}

template <bool kNorms, typename T>
__device__ inline void node_forward(const SweepColumns<T>& q, const TangentNode<T>& n) {
  if (n.kind == kLinearNode) return linear_forward(q, n);
  if constexpr (kNorms) {
    if (n.kind == kNormNode) return norms_forward(q, n);
  }
  for (int64_t r = q.first(); r < n.R; r += q.step()) {
    if (n.kind == kSoftmaxNode) {
      softmax_row(q, n, r);
    } else {
      other_forward(q, n, r);
    }
  }
}

// This thread's sum over its rows to the sum of each column, in the order of the threads.
template <typename T>
__device__ inline void sum_columns(T value, const SweepColumns<T>& q, T* squares) {
  __syncthreads();  // the scratch is free
  q.scratch[threadIdx.x] = value;
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < q.columns) {
    T total = T(0);
    for (unsigned t = threadIdx.x; t < blockDim.x; t += q.w) total += q.scratch[t];
    squares[threadIdx.x] = total;
  }
}

}  // namespace chaos_ext
