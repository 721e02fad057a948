// The operands of hessian_block_ as plain pointers and sizes, shared by CPU and CUDA; formula and legend: block.h.
#pragma once

#include "../common/host_device.h"

namespace chaos_ext {

// Where a layer's parameters lie in the flat vector.
struct ParameterSpan {
  int64_t weight;  // offset of the weight [O, I], or negative
  int64_t bias;    // offset of the bias [O], or negative

  CHAOS_EXT_HD_MEMBER bool has_weight() const { return weight >= 0; }
  CHAOS_EXT_HD_MEMBER bool has_bias() const { return bias >= 0; }
};

// Pointers and sizes of one call. Which terms there are is said by has_K and has_J: the pointer of a tensor without
// elements is null too.
template <typename T>
struct BlockProblem {
  T* H;              // [P, P], row stride ld
  const T* a_s;      // [N, I_s]
  const T* K;        // [O_s, N, O_t] or null
  const T* a_t;      // [N, I_t] or null
  const T* delta_t;  // [N, O_t] or null
  const T* J;        // [O_s, N, I_t] or null
  int64_t ld, N, O_s, I_s, O_t, I_t;
  ParameterSpan row, col;
  bool has_K, has_J;
};

}  // namespace chaos_ext
