// hessian_block_ on the GPU. Formula: block.h. One thread block per tile of 32 x 32 entries (j, l) of units (i, k):
//
//     value[j][l] = sum_n a_s[n, j] M[n, l],   M[n, l] = K[i, n, k] a_t[n, l] + delta_t[n, k] J[i, n, l]
//
// accumulated over chunks of 16 samples in shared memory; M never goes to memory. 32 x 8 threads hold four rows j each.
// The finished tile lies in shared memory, from where rows and mirrored rows of H are both written coalesced. Each
// value is computed once, so H is exactly symmetric; for `same` only i <= k and l-tiles >= j-tiles are computed.
#pragma once

#include <cuda_runtime.h>

#include "block_problem.h"

namespace chaos_ext {

constexpr int kBlockTile = 32;
constexpr int kBlockSamples = 16;
constexpr int kBlockRows = 8;  // threads in y

// One tile of the work: units (i, k), first row j0 and first column l0.
struct BlockTile {
  int64_t i, k, j0, l0;
};

template <typename T>
__device__ inline BlockTile block_tile(const BlockProblem<T>& q, int64_t index) {
  const int64_t j_tiles = q.I_s / kBlockTile + 1, l_tiles = q.I_t / kBlockTile + 1;  // ceil((I + 1) / 32)
  BlockTile t;
  t.l0 = index % l_tiles * kBlockTile;
  index /= l_tiles;
  t.j0 = index % j_tiles * kBlockTile;
  index /= j_tiles;
  t.k = index % q.O_t;
  t.i = index / q.O_t;
  return t;
}

// Row of H of entry (unit, input); -1 where that parameter does not exist.
__device__ inline int64_t parameter_row(const ParameterSpan& span, int64_t unit, int64_t input, int64_t inputs) {
  if (input < inputs) return span.has_weight() ? span.weight + unit * inputs + input : -1;
  return input == inputs && span.has_bias() ? span.bias + unit : -1;
}

template <typename T>
__device__ inline T load_row_input(const BlockProblem<T>& q, int64_t n, int64_t j) {
  if (n >= q.N || j > q.I_s) return T(0);
  return j == q.I_s ? T(1) : q.a_s[n * q.I_s + j];
}

template <typename T>
__device__ inline T load_column_input(const BlockProblem<T>& q, bool same, const BlockTile& t, int64_t n, int64_t l) {
  if (n >= q.N || l > q.I_t) return T(0);
  T m = T(0);
  if (q.has_K) {
    const T* a = same ? q.a_s : q.a_t;
    m = q.K[(t.i * q.N + n) * q.O_t + t.k] * (l == q.I_t ? T(1) : a[n * q.I_t + l]);
  }
  if (q.has_J && l < q.I_t) m += q.delta_t[n * q.O_t + t.k] * q.J[(t.i * q.N + n) * q.I_t + l];
  return m;
}

// value[j][l] = sum_n a_s M for the whole tile. All threads of the block call.
template <typename T>
__device__ inline void contract_tile(const BlockProblem<T>& q, bool same, const BlockTile& t,
                                     T (&value)[kBlockTile][kBlockTile + 1]) {
  __shared__ T a[kBlockSamples][kBlockTile + 1], m[kBlockSamples][kBlockTile + 1];
  const int x = threadIdx.x, y = threadIdx.y;
  T sum[kBlockTile / kBlockRows] = {};
  for (int64_t n0 = 0; n0 < q.N; n0 += kBlockSamples) {
    for (int n = y; n < kBlockSamples; n += kBlockRows) {
      a[n][x] = load_row_input(q, n0 + n, t.j0 + x);
      m[n][x] = load_column_input(q, same, t, n0 + n, t.l0 + x);
    }
    __syncthreads();
    for (int n = 0; n < kBlockSamples; ++n) {
#pragma unroll
      for (int r = 0; r < kBlockTile / kBlockRows; ++r) sum[r] += a[n][y + r * kBlockRows] * m[n][x];
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < kBlockTile / kBlockRows; ++r) value[y + r * kBlockRows][x] = sum[r];
  __syncthreads();
}

// Rows (row_unit, j) x columns (column_unit, l) of H from the tile, or from its transpose with j and l exchanged.
template <bool transposed, typename T>
__device__ inline void write_tile(const BlockProblem<T>& q, const ParameterSpan& rows, int64_t row_unit, int64_t j0,
                                  int64_t row_inputs, const ParameterSpan& columns, int64_t column_unit, int64_t l0,
                                  int64_t column_inputs, const T (&value)[kBlockTile][kBlockTile + 1]) {
  const int x = threadIdx.x;
  const int64_t column = parameter_row(columns, column_unit, l0 + x, column_inputs);
  for (int y = threadIdx.y; y < kBlockTile; y += kBlockRows) {
    const int64_t row = parameter_row(rows, row_unit, j0 + y, row_inputs);
    if (row >= 0 && column >= 0) q.H[row * q.ld + column] = transposed ? value[x][y] : value[y][x];
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlockTile* kBlockRows)
    hessian_block_kernel(BlockProblem<T> q, bool same, int64_t tiles) {
  __shared__ T value[kBlockTile][kBlockTile + 1];
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const BlockTile t = block_tile(q, index);
    if (same && (t.i > t.k || t.j0 > t.l0)) continue;
    contract_tile(q, same, t, value);
    if (same && t.j0 == t.l0) {  // the upper triangle decides
      for (int y = threadIdx.y; y < kBlockTile; y += kBlockRows) {
        if (static_cast<int>(threadIdx.x) < y) value[y][threadIdx.x] = value[threadIdx.x][y];
      }
      __syncthreads();
    }
    write_tile<false>(q, q.row, t.i, t.j0, q.I_s, q.col, t.k, t.l0, q.I_t, value);
    write_tile<true>(q, q.col, t.k, t.l0, q.I_t, q.row, t.i, t.j0, q.I_s, value);
    if (same) {  // H[(i, l), (k, j)] and H[(k, j), (i, l)] have the same value
      write_tile<true>(q, q.row, t.i, t.l0, q.I_t, q.col, t.k, t.j0, q.I_s, value);
      write_tile<false>(q, q.col, t.k, t.j0, q.I_s, q.row, t.i, t.l0, q.I_t, value);
    }
    __syncthreads();  // before the next tile overwrites value
  }
}

}  // namespace chaos_ext
