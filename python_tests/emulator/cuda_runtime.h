// Stands in for CUDA's header of this name, so that g++ compiles the kernels of csrc/**/*.cuh as they are, and runs
// them on the CPU: emulator::launch(grid, block, body) executes body once for every thread of every block.
//
// Each thread of a block is a fiber that runs until __syncthreads or a shuffle; when all have arrived, all go on. What
// CUDA leaves undefined is an error here: a barrier or shuffle that only part of the block or warp reaches, or that its
// threads reach at different places. Shared memory is a static variable: a block finds what its predecessor left there,
// as on a GPU. The order in which threads run between barriers is free on a GPU; here it is forwards or backwards, so
// that tests run in both orders see most missing barriers. Races within a warp and launch limits need a GPU.
#pragma once

#include <math.h>  // not cmath: device code finds the overloads of ::exp

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "block.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)

namespace emulator {

// Shared memory of a size that the launch decides, in double words; like other shared memory it is not cleared.
inline std::vector<double>& shared_words() {
  static std::vector<double> words;
  return words;
}

inline void* dynamic_shared() { return shared_words().data(); }

inline void launch(dim3 grid, dim3 block, const std::function<void()>& body) {
  const unsigned threads = block.x * block.y * block.z, blocks = grid.x * grid.y * grid.z;
  if (threads == 0 || threads > kMaxThreads || blocks == 0) {
    throw std::invalid_argument("launch: expected at least one block of 1 to 1024 threads, got " +
                                std::to_string(blocks) + " of " + std::to_string(threads));
  }
  gridDim = grid;
  blockDim = block;
  const bool reversed = Block::current().reversed;
  for (unsigned n = 0; n < blocks; ++n) {
    const unsigned b = reversed ? blocks - 1 - n : n;
    blockIdx = dim3(b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y));
    Block::current().run(block, body);
  }
}

}  // namespace emulator

// ---- what device code calls --------------------------------------------------------------------------------------

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  using emulator::Wait;
  emulator::Block::current().wait({Wait::kBlock, "__syncthreads", file, line});
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, const char* file = __builtin_FILE(),
                   int line = __builtin_LINE()) {
  using emulator::Wait;
  return emulator::Block::current().exchange(mask, value, {Wait::kWarp, "__shfl_down_sync", file, line},
                                             [delta](unsigned lane) { return lane + delta; });
}
