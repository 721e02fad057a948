// Run-time choice among code compiled for several instruction sets; see foreach_target.inl.
#pragma once

#include <cstdlib>
#include <cstring>

// GCC on x86-64 only: clang does not know GCC's pragma, other machines have one vector unit. They use the baseline.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CE_X86_TARGETS 1
#include <immintrin.h>
#else
#define CE_X86_TARGETS 0
#endif

namespace chaos_ext {

enum class CpuTarget { kBaseline, kAvx2, kAvx512 };

// What this processor can do; ATEN_CPU_CAPABILITY=default|avx2 restricts this library as it restricts torch.
inline CpuTarget detect_cpu_target() {
#if CE_X86_TARGETS
  const char* variable = std::getenv("ATEN_CPU_CAPABILITY");
  const char* limit = variable == nullptr ? "" : variable;
  if (std::strcmp(limit, "default") == 0) return CpuTarget::kBaseline;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (avx512 && std::strcmp(limit, "avx2") != 0) return CpuTarget::kAvx512;
  if (avx2) return CpuTarget::kAvx2;
#endif
  return CpuTarget::kBaseline;
}

template <typename Kernels>
const Kernels& choose_target(const Kernels& baseline, const Kernels& avx2, const Kernels& avx512) {
  static const CpuTarget target = detect_cpu_target();
  if (target == CpuTarget::kAvx512) return avx512;
  return target == CpuTarget::kAvx2 ? avx2 : baseline;
}

// The object `name` that CE_FILE defines for dtype `type`, in its best version for this processor.
#if CE_X86_TARGETS
#define CE_CHOOSE(type, name) choose_target(baseline_##type::name, avx2_##type::name, avx512_##type::name)
#else
#define CE_CHOOSE(type, name) baseline_##type::name
#endif

}  // namespace chaos_ext
