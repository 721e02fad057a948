// Arithmetic on sizes and offsets that a caller chose: nothing overflows, whatever they are. Without torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <vector>

namespace chaos_ext {

// More numbers than any memory holds; what has no more may be doubled, padded to blocks and counted in bytes.
constexpr int64_t kMostNumbers = int64_t{1} << 50;

constexpr int64_t kTooMany = std::numeric_limits<int64_t>::max();

// The product of sizes >= 0; kTooMany, which no tensor has, where it is no int64.
inline int64_t product_of(std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  bool zero = false, overflow = false;
  for (const int64_t size : sizes) {
    zero = zero || size == 0;
    overflow = overflow || __builtin_mul_overflow(product, std::max<int64_t>(size, 1), &product);
  }
  return zero ? 0 : overflow ? kTooMany : product;
}

// Whether first .. first + count lies within 0 .. rows; the sum, which may overflow, is not formed.
inline bool within(int64_t first, int64_t count, int64_t rows) {
  return first >= 0 && count >= 0 && count <= rows && first <= rows - count;
}

struct Run {
  int64_t first, count;
};

// Whether no two runs, each within some rows, share one.
inline bool disjoint(std::vector<Run> runs) {
  runs.erase(std::remove_if(runs.begin(), runs.end(), [](const Run& run) { return run.count == 0; }), runs.end());
  std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.first < b.first; });
  for (size_t i = 1; i < runs.size(); ++i) {
    if (runs[i].first - runs[i - 1].first < runs[i - 1].count) return false;
  }
  return true;
}

}  // namespace chaos_ext
