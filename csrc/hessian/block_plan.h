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
  bool stream;       // H is larger than the caches: write around them
};

// Work items [begin, end) of one part of a block; which items there are is said at the kernels.
template <typename T>
using BlockRange = void (*)(const BlockPlan<T>& plan, int64_t begin, int64_t end);

constexpr int64_t kUnitGroup = 32;
constexpr int64_t kRowGroup = 768;   // columns of t of one item: long runs along a row,
constexpr int64_t kOnceGroup = 128;  // or a tile that can be transposed in the L1 cache

// One way to fill H.
template <typename T>
struct BlockWay {
  BlockRange<T> same;      // items (j, group of kUnitGroup units i)
  BlockRange<T> direct;    // items (i, group of columns): rows of s, columns of t
  BlockRange<T> mirrored;  // items (k, l): rows of t, columns of s; null where `direct` writes them
};

template <typename T>
struct BlockKernels {
  BlockWay<T> by_rows;  // writing bounds the time: every entry is computed for each of its places, row by row
  BlockWay<T> once;     // arithmetic bounds it: an entry is computed once and written to all its places
};

inline int64_t groups(int64_t size, int64_t group) { return (size + group - 1) / group; }

}  // namespace chaos_ext
