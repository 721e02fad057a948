// tangent_product and tangent_update_ on the GPU. Formulas: tangent_sweep.h. One thread block sweeps a block of w
// columns; threads run over (row, column), columns fastest, so that they read runs of Y and broadcast the operands. The
// block's tangents lie in shared memory, and so do its columns of theta where they fit: Y is then read once and written
// once. Where even the tangents do not fit they go to a scratch in global memory, each block its own. Sums run in a
// fixed order; phases are separated by barriers.
#pragma once

#include <cuda_runtime.h>

#include "tangent_columns.cuh"

namespace chaos_ext {

// One block of w columns a thread block; blockDim.x is a multiple of w. The scratch holds scratch_rows >= blockDim.x /
// w. kNorms: whether there may be norm nodes, which need more registers.
template <typename T, bool kNorms>
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
    node_forward<kNorms>(q, program.node[i]);
    __syncthreads();
  }
  T sum = T(0);
  for (int i = program.count - 1; i >= 0; --i) {
    const TangentNode<T>& n = program.node[i];
    if (n.kind == kLinearNode) {
      if (n.in[0].has()) linear_to_input(q, n);
      __syncthreads();
      sum += linear_to_theta(q, n, slots);
    } else if (kNorms && n.kind == kNormNode) {
      norms_to_input(q, n);
      __syncthreads();
      sum += norm_to_slots(q, n, slots);
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
