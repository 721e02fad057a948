// Kernels that are wrong on purpose: the tests of the emulator and of the sanitizers demand that each is found.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/reduce.cuh"

namespace faults {

// The last thread returns before the barrier.
__global__ void early_return_kernel(float* out) {
  if (threadIdx.x + 1 == blockDim.x) return;
  __syncthreads();
  out[threadIdx.x] = 1.f;
}

// Even and odd threads wait at different barriers.
__global__ void two_barriers_kernel(float* out) {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1.f;
}

// Half of each warp takes part in a shuffle.
__global__ void half_warp_kernel(float* out) {
  float value = static_cast<float>(threadIdx.x);
  if (threadIdx.x % 32 < 16) value = __shfl_down_sync(0xffffffffu, value, 8);
  out[threadIdx.x] = value;
}

// Each thread reads what the next one wrote to shared memory, without a barrier between.
__global__ void missing_barrier_kernel(float* out, float start) {
  __shared__ float row[chaos_ext::kWarpSize];
  row[threadIdx.x] = start + static_cast<float>(threadIdx.x);
  out[threadIdx.x] = row[(threadIdx.x + 1) % blockDim.x];
}

// One element behind the end of out [n].
__global__ void global_overrun_kernel(float* out, int64_t n) {
  for (int64_t i = threadIdx.x; i <= n; i += blockDim.x) out[i] = 0.f;
}

// Behind the end of shared memory, through a pointer that hides its size from the compiler.
__global__ void shared_overrun_kernel(float* out) {
  __shared__ float row[chaos_ext::kWarpSize];
  float* volatile p = row;
  p[threadIdx.x + 1] = 1.f;
  __syncthreads();
  out[threadIdx.x] = row[threadIdx.x];
}

// Behind the end of a local array, after a barrier.
__global__ void local_overrun_kernel(float* out) {
  float local[4] = {};
  float* volatile p = local;
  __syncthreads();
  p[4] = 1.f;
  out[threadIdx.x] = local[0];
}

// Signed overflow: 2^31 (threadIdx.x + 1) in 32 bits.
__global__ void overflow_kernel(float* out, int size) {
  out[threadIdx.x] = static_cast<float>(size * static_cast<int>(threadIdx.x + 1));
}

}  // namespace faults
