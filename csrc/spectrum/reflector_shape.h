// How the reflectors of tridiagonalise are padded; see tridiagonalise.h.
#pragma once

#include <cstdint>

namespace chaos_ext {

constexpr int64_t kBlock = 16;  // rows and columns are padded to whole blocks

inline int64_t padded_rows(int64_t n) { return (n + kBlock - 1) / kBlock * kBlock; }

// Row stride: an odd number of blocks, so that neighbouring rows lie in different sets of a cache.
inline int64_t padded_stride(int64_t n) { return ((n + kBlock - 1) / kBlock | 1) * kBlock; }

}  // namespace chaos_ext
