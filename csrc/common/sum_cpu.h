// Sums that do not depend on the number of threads: the range is cut into blocks of a fixed size, each block is
// summed in order by one thread, and the partial sums are added in order in float64.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace chaos_ext {

// Sum over the blocks [begin, end) of [0, n) of body(begin, end), which returns the float64 sum of its block.
template <typename Body>
inline double blocked_sum(int64_t n, int64_t block, const Body& body) {
  const int64_t blocks = (n + block - 1) / block;
  std::vector<double> partial(blocks, 0.0);
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) partial[b] = body(b * block, std::min(n, (b + 1) * block));
  });
  double total = 0.0;
  for (const double value : partial) total += value;
  return total;
}

}  // namespace chaos_ext
