// Marks the functions that CPU kernels, CUDA kernels and the CPU emulator of the CUDA kernels share,
// so that the tests on the CPU exercise the very arithmetic that the GPU runs.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define CHAOS_EXT_HD __host__ __device__ inline
#define CHAOS_EXT_HD_MEMBER __host__ __device__
#define CHAOS_EXT_HD_LAMBDA
#elif defined(__GNUC__)
#define CHAOS_EXT_HD inline __attribute__((always_inline))  // into callers compiled for wider vectors
#define CHAOS_EXT_HD_MEMBER
#define CHAOS_EXT_HD_LAMBDA __attribute__((always_inline))
#else
#define CHAOS_EXT_HD inline
#define CHAOS_EXT_HD_MEMBER
#define CHAOS_EXT_HD_LAMBDA
#endif
