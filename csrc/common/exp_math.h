// exp, expm1 and log1p where activations need them, without branches, so that loops over them vectorise (libm's do not,
// short of -ffast-math). Plain IEEE arithmetic, shared by CPU and CUDA; relative error below 2 ulp, NaN propagates.
#pragma once

#include <cstring>

#include "host_device.h"

namespace chaos_ext {

template <typename T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  using Bits = int32_t;
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kMagic = 12582912.0f;  // 1.5 2^23: adding it rounds to an integer held in the low bits
  static constexpr float kLowest = -110.0f;     // below, exp is 0
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
};

template <>
struct ExpConstants<double> {
  using Bits = int64_t;
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kMagic = 6755399441055744.0;  // 1.5 2^52
  static constexpr double kLowest = -760.0;
  static constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
};

template <typename To, typename From>
CHAOS_EXT_HD To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// (expm1(r) - r) / r^2 for |r| <= ln 2 / 2, by its Taylor series.
CHAOS_EXT_HD float expm1_tail(float r) {
  return 0.5f + r * (1.f / 6 + r * (1.f / 24 + r * (1.f / 120 + r * (1.f / 720 + r * (1.f / 5040)))));
}

CHAOS_EXT_HD double expm1_tail(double r) {
  const double high = 1. / 40320 + r * (1. / 362880 + r * (1. / 3628800 + r * (1. / 39916800 + r * (1. / 479001600))));
  return 0.5 + r * (1. / 6 + r * (1. / 24 + r * (1. / 120 + r * (1. / 720 + r * (1. / 5040 + r * high)))));
}

template <typename T>
struct ExpParts {
  T exp, expm1;
};

// exp(x) and expm1(x), both to full relative accuracy, for x <= 0.
template <typename T>
CHAOS_EXT_HD ExpParts<T> exp_parts(T x) {
  using C = ExpConstants<T>;
  using Bits = typename C::Bits;
  x = x < C::kLowest ? C::kLowest : x;
  const T shifted = x * T(1.44269504088896340736) + C::kMagic;
  const Bits n = bits_as<Bits>(shifted) - bits_as<Bits>(C::kMagic);
  const T whole = shifted - C::kMagic;
  const T r = (x - whole * C::kLn2High) - whole * C::kLn2Low;
  const T p = r + r * r * expm1_tail(r);  // expm1(r)
  // 2^n = 2^h 2^(n - h): subnormal results need two factors.
  const Bits h = n >> 1;
  const T first = bits_as<T>((h + C::kBias) << C::kMantissa), second = bits_as<T>((n - h + C::kBias) << C::kMantissa);
  const T scale = first * second;
  return {(T(1) + p) * first * second, scale * p + (scale - T(1))};
}

// log(1 + e) for 0 <= e <= 1: 2 atanh(s) = 2 s (1 + s^2 / 3 + s^4 / 5 + ...), s = e / (2 + e) <= 1/3.
CHAOS_EXT_HD float log1p_unit(float e) {
  const float s = e / (2.f + e), q = s * s;
  const float tail =
      1.f / 3 + q * (1.f / 5 + q * (1.f / 7 + q * (1.f / 9 + q * (1.f / 11 + q * (1.f / 13 + q * (1.f / 15))))));
  return 2.f * s + 2.f * s * q * tail;
}

CHAOS_EXT_HD double log1p_unit(double e) {
  const double s = e / (2. + e), q = s * s;
  const double high =
      1. / 19 +
      q * (1. / 21 +
           q * (1. / 23 +
                q * (1. / 25 + q * (1. / 27 + q * (1. / 29 + q * (1. / 31 + q * (1. / 33 + q * (1. / 35))))))));
  const double tail =
      1. / 3 +
      q * (1. / 5 +
           q * (1. / 7 + q * (1. / 9 + q * (1. / 11 + q * (1. / 13 + q * (1. / 15 + q * (1. / 17 + q * high)))))));
  return 2. * s + 2. * s * q * tail;
}

}  // namespace chaos_ext
