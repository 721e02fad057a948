// Compiles the file named by CE_FILE once per instruction set and dtype, in namespaces avx512_float, avx512_double,
// avx2_float, ..., baseline_double of the including one. CE_CHOOSE (cpu_target.h) picks at run time. Within CE_FILE:
//   CE_SCALAR         float or double
//   CE_VECTOR_BYTES   size of a vector register;  CE_PANEL_VECTORS  registers in a row of a register tile
//   CE_FMA(a, b, c)   a b + c, rounded once where the instruction set can
//   CE_STREAM(p, v)   stores a vector at p, aligned, around the caches
// CE_FILE has no include guard and includes at most a part of itself; its headers and cpu_target.h are included before.

#define CE_SEPARATE(a, b, c) ((a) * (b) + (c))

#if CE_X86_TARGETS

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#define CE_VECTOR_BYTES 64
#define CE_PANEL_VECTORS 4
#define CE_STREAM(p, v) _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)(v))
namespace avx512_float {
#define CE_SCALAR float
#define CE_FMA __builtin_fmaf
#include CE_FILE
#undef CE_SCALAR
#undef CE_FMA
}  // namespace avx512_float
namespace avx512_double {
#define CE_SCALAR double
#define CE_FMA __builtin_fma
#include CE_FILE
#undef CE_SCALAR
#undef CE_FMA
}  // namespace avx512_double
#undef CE_VECTOR_BYTES
#undef CE_PANEL_VECTORS
#undef CE_STREAM
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define CE_VECTOR_BYTES 32
#define CE_PANEL_VECTORS 2
#define CE_STREAM(p, v) _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)(v))
namespace avx2_float {
#define CE_SCALAR float
#define CE_FMA __builtin_fmaf
#include CE_FILE
#undef CE_SCALAR
#undef CE_FMA
}  // namespace avx2_float
namespace avx2_double {
#define CE_SCALAR double
#define CE_FMA __builtin_fma
#include CE_FILE
#undef CE_SCALAR
#undef CE_FMA
}  // namespace avx2_double
#undef CE_VECTOR_BYTES
#undef CE_PANEL_VECTORS
#undef CE_STREAM
#pragma GCC pop_options

#endif  // CE_X86_TARGETS

#define CE_VECTOR_BYTES 16
#define CE_PANEL_VECTORS 2
#if CE_X86_TARGETS
#define CE_STREAM(p, v) _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)(v))
#else
#define CE_STREAM(p, v) *reinterpret_cast<Loose*>(p) = (v)
#endif
namespace baseline_float {
#define CE_SCALAR float
#if defined(__FP_FAST_FMAF)  // AArch64, or x86 with -march=...
#define CE_FMA __builtin_fmaf
#else
#define CE_FMA CE_SEPARATE
#endif
#include CE_FILE
#undef CE_SCALAR
#undef CE_FMA
}  // namespace baseline_float
namespace baseline_double {
#define CE_SCALAR double
#if defined(__FP_FAST_FMA)
#define CE_FMA __builtin_fma
#else
#define CE_FMA CE_SEPARATE
#endif
#include CE_FILE
#undef CE_SCALAR
#undef CE_FMA
}  // namespace baseline_double
#undef CE_VECTOR_BYTES
#undef CE_PANEL_VECTORS
#undef CE_STREAM
#undef CE_SEPARATE
#undef CE_FILE
