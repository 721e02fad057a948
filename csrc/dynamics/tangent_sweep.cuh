// tangent_product and tangent_update_ on the GPU. Formulas: tangent_sweep.h. One thread block sweeps a block of w
// columns; threads run over (row, column), columns fastest, so that they read runs of Y and broadcast the operands. The
// block's tangents lie in shared memory, and so do its columns of theta where they fit: Y is then read once and written
// once. Where even the tangents do not fit they go to a scratch in global memory, each block its own. Sums run in a
// fixed order; phases are separated by barriers.
#pragma once

#include <cuda_runtime.h>

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

// s (diag p - p p^T) dz on dz minus dz at the largest p, where nothing cancels.
template <typename T>
__device__ inline void softmax_row(const SweepColumns<T>& q, const TangentNode<T>& n, int64_t r) {
  const T* p = n.a + r * n.O;
  const T* d = q.row(n.in[0].d + r * n.O) + q.x();
  T* e = q.row(n.in[0].e + r * n.O) + q.x();
  int64_t top = 0;
  for (int64_t c = 1; c < n.O; ++c) {
    if (p[c] > p[top]) top = c;
  }
  const T base = d[top * q.w];
  T mean = T(0);
  for (int64_t c = 0; c < n.O; ++c) mean += p[c] * (d[c * q.w] - base);
  for (int64_t c = 0; c < n.O; ++c) e[c * q.w] = n.W[r] * p[c] * ((d[c * q.w] - base) - mean);
}

// One row of a node that is not linear.
template <typename T>
__device__ inline void other_forward(const SweepColumns<T>& q, const TangentNode<T>& n, int64_t r) {
  const int x = q.x();
  const T a = n.in[0].has() ? q.row(n.in[0].d + r)[x] : T(0), b = n.in[1].has() ? q.row(n.in[1].d + r)[x] : T(0);
  if (n.kind == kScaleNode) q.row(n.out.d + r)[x] = n.a[r] * a;
  if (n.kind == kSumNode) q.row(n.out.d + r)[x] = n.alpha * a + n.beta * b;
  if (n.kind == kDiagonalNode) q.row(n.in[0].e + r)[x] = (n.a == nullptr ? n.alpha : n.a[r]) * a;
}

template <typename T>
__device__ inline void other_backward(const SweepColumns<T>& q, const TangentNode<T>& n, int64_t r) {
  const int x = q.x();
  for (int i = 0; i < 2; ++i) {
    if (!n.in[i].has()) continue;
    T* to = q.row(n.in[i].e + r) + x;
    const T e = q.row(n.out.e + r)[x];
    T value = n.kind == kScaleNode ? n.a[r] * e : (i == 0 ? n.alpha : n.beta) * e;
    if (n.kind == kScaleNode && n.W != nullptr) value += n.W[r] * q.row(n.in[i].d + r)[x];
    *to = n.adds[i] ? *to + value : value;
  }
}

template <typename T>
__device__ inline void node_forward(const SweepColumns<T>& q, const TangentNode<T>& n) {
  if (n.kind == kLinearNode) return linear_forward(q, n);
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

// One block of w columns a thread block; blockDim.x is a multiple of w. The scratch holds scratch_rows >= blockDim.x /
// w.
template <typename T>
__global__ void tangent_sweep_kernel(const __grid_constant__ TangentProgram<T> program,
                                     const __grid_constant__ UpdateList<T> slots,
                                     T* Y,  // [S, k], rows ld apart
                                     int64_t ld, int64_t P, int64_t k, int w,
                                     T* out,  // [P, k] of tangent_product, else null
                                     T* global_scratch, int64_t scratch_rows, bool keeps_theta,
                                     T* squares) {  // [k], or null
  T* const shared = dynamic_shared<T>();
  const int64_t x0 = static_cast<int64_t>(blockIdx.x) * w;
  const int64_t scratch_size = scratch_rows * w;
  SweepColumns<T> q{};
  q.Y = Y + x0, q.ld = ld;
  q.out = out == nullptr ? nullptr : out + x0;
  q.ld_out = k;
  q.w = w, q.columns = static_cast<int>(k - x0 < w ? k - x0 : w);
  q.scratch = global_scratch == nullptr ? shared : global_scratch + blockIdx.x * scratch_size;
  q.V = q.Y, q.ldv = ld;
  if (keeps_theta) {
    T* const theta = shared + (global_scratch == nullptr ? scratch_size : 0);
    for (int64_t row = q.first(); row < P; row += q.step()) theta[row * w + q.x()] = q.Y[row * ld + q.read_x()];
    q.V = theta, q.ldv = w;
    __syncthreads();
  }
  for (int i = 0; i < program.count; ++i) {
    node_forward(q, program.node[i]);
    __syncthreads();
  }
  T sum = T(0);
  for (int i = program.count - 1; i >= 0; --i) {
    const TangentNode<T>& n = program.node[i];
    if (n.kind == kLinearNode) {
      if (n.in[0].has()) linear_to_input(q, n);
      __syncthreads();
      sum += linear_to_theta(q, n, slots);
    } else if (n.kind == kScaleNode || n.kind == kSumNode) {
      for (int64_t r = q.first(); r < n.R; r += q.step()) other_backward(q, n, r);
      __syncthreads();
    }
  }
  if (squares != nullptr) sum_columns(sum, q, squares + x0);
}

// H Y is given: grid (blocks of w columns, chunks of rows); squares [gridDim.y, k].
template <typename T>
__global__ void tangent_update_kernel(const __grid_constant__ UpdateList<T> slots,
                                      T* Y,  // [S, k], rows ld apart
                                      int64_t ld,
                                      const T* HY,  // [P, k], rows ld_given apart
                                      int64_t ld_given, int64_t k, int w,
                                      T* squares) {  // [gridDim.y, k]
  const int64_t x0 = static_cast<int64_t>(blockIdx.x) * w;
  SweepColumns<T> q{};
  q.Y = Y + x0, q.ld = ld, q.w = w;
  q.columns = static_cast<int>(k - x0 < w ? k - x0 : w);
  q.scratch = dynamic_shared<T>();
  const int x = q.x();
  const int64_t start = blockIdx.y * q.step() + q.first(), step = gridDim.y * q.step();
  T sum = T(0);
  for (int n = 0; n < slots.count && x < q.columns; ++n) {
    const UpdateSlot<T>& s = slots.slot[n];
    for (int64_t i = start; i < s.rows; i += step) {
      sum += finish_as(q, s, i, HY[(s.first + i) * ld_given + x0 + x], x);
    }
  }
  sum_columns(sum, q, squares + blockIdx.y * k + x0);
}

}  // namespace chaos_ext
