// What the CPU kernels of hessian_block_ share: the problem, its operands repacked with the batch index last, and how
// entries are written. One BlockKernels table exists per instruction set and dtype.
#pragma once

#include <cstdint>

#include "block.h"

namespace chaos_ext {

template <typename T>
struct BlockPlan {
  BlockProblem<T> q;
  // same = true:
  const T* C;  // [O, O, N], C[i, k] = C[k, i] = K[min, :, max]
  // same = false, absent operands are null:
  const T* K_t;      // [O_t, O_s, N]
  const T* J_t;      // [I_t, O_s, N]
  const T* rows_s;   // [I_s + 1, N], a_s transposed, the last row is 1
  const T* rows_t;   // [I_t + 1, N], a_t transposed, the last row is 1
  const T* delta_t;  // [O_t, N]
  // N is small: writing bounds the time. Every entry is computed for each of its places, and H is written row by row.
  // Otherwise arithmetic bounds it: an entry is computed once and written to all its places.
  bool write_bound;
  bool stream;  // H is larger than the caches: write around them
};

// Work items [begin, end) of one part of a block; which items there are is said at the kernels.
template <typename T>
using BlockRange = void (*)(const BlockPlan<T>& plan, int64_t begin, int64_t end);

template <typename T>
struct BlockKernels {
  BlockRange<T> same;      // items (j, group of kUnitGroup units i)
  BlockRange<T> direct;    // items (i, group of column_group columns): rows of s, columns of t
  BlockRange<T> mirrored;  // items (k, l): rows of t, columns of s; only for write_bound
};

constexpr int64_t kUnitGroup = 32;

inline int64_t groups(int64_t size, int64_t group) { return (size + group - 1) / group; }

// Columns of t that one item of `direct` covers: long runs along a row where writing bounds the time, a tile that can
// be transposed in the L1 cache otherwise.
inline int64_t column_group(bool write_bound) { return write_bound ? 768 : 128; }

}  // namespace chaos_ext
