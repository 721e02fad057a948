// Value and first two derivatives of every activation, for one number; shared by CPU and CUDA.
//
// Conventions at kinks and thresholds are those of torch's own backward and double backward:
//   relu, hardtanh: derivative 0 at the kink;  leaky_relu: the slope at 0;
//   elu, selu, celu: f'(0) is the limit from below, f''(0) = 0;
//   softplus: linear for beta z > threshold, f'' = 0 from beta z = threshold on.
// There are no branches on z, so loops vectorise (gelu's erfc excepted, which is libm's).
// sigma(z) sigma(-z), sech^2 and 1 - 2 sigma are formed from exp(-|z|) and expm1(-|z|), never by subtraction from 1,
// so the derivatives keep their relative accuracy for large |z| (and f'' at z -> 0 where it is odd). NaN propagates.
#pragma once

#include "../common/logistic.h"

namespace chaos_ext {

// The values are part of the operator's schema: chaos_ext/_ops/layers.py names the same numbers.
enum class Activation : int64_t {
  kRelu = 0,
  kLeakyRelu = 1,  // alpha = slope for z <= 0
  kElu = 2,        // alpha
  kSelu = 3,
  kCelu = 4,  // alpha
  kSigmoid = 5,
  kTanh = 6,
  kSoftplus = 7,  // alpha = beta, beta = threshold
  kSilu = 8,
  kGeluErf = 9,
  kGeluTanh = 10,
  kHardtanh = 11,  // alpha = min, beta = max
  kCount = 12,
};

// Piecewise linear: the second derivative is identically 0 and is not stored.
CHAOS_EXT_HD constexpr bool is_piecewise_linear(Activation kind) {
  return kind == Activation::kRelu || kind == Activation::kLeakyRelu || kind == Activation::kHardtanh;
}

template <typename T>
struct ActivationValues {
  T a;   // f(z)
  T d1;  // f'(z)
  T d2;  // f''(z)
};

// s = sigma(z), r = sigma(-z), d = s - r = tanh(z / 2) = -(1 - 2 s), each to full relative accuracy.
template <typename T>
struct SigmoidParts {
  T s, r, d;
};

template <typename T>
CHAOS_EXT_HD SigmoidParts<T> sigmoid_parts(T z) {
  const bool negative = z < T(0);
  const Logistic<T> of = logistic(z);
  const T gap = -of.e.expm1 * of.big;
  return {negative ? of.small : of.big, negative ? of.big : of.small, negative ? -gap : gap};
}

// f(z) = scale * (z > 0 ? z : alpha * expm1(z * rate)): elu, selu and celu.
template <typename T>
CHAOS_EXT_HD ActivationValues<T> elu_values(T z, T alpha, T scale, T rate) {
  const bool positive = z > T(0);
  const ExpParts<T> e = exp_parts(positive ? T(0) : z * rate);
  const T slope = scale * alpha * rate * e.exp;
  return {positive ? scale * z : scale * alpha * e.expm1, positive ? scale : slope, z < T(0) ? rate * slope : T(0)};
}

template <typename T>
CHAOS_EXT_HD ActivationValues<T> sigmoid_values(T z) {
  const SigmoidParts<T> g = sigmoid_parts(z);
  const T d1 = g.s * g.r;
  return {g.s, d1, -d1 * g.d};
}

// tanh z = sigma(2 z) - sigma(-2 z), sech^2 z = 4 sigma(2 z) sigma(-2 z).
template <typename T>
CHAOS_EXT_HD ActivationValues<T> tanh_values(T z) {
  const SigmoidParts<T> g = sigmoid_parts(T(2) * z);
  const T d1 = T(4) * g.s * g.r;
  return {g.d, d1, T(-2) * g.d * d1};
}

template <typename T>
CHAOS_EXT_HD ActivationValues<T> softplus_values(T z, T beta, T threshold) {
  const T x = z * beta;
  const Logistic<T> of = logistic(x);
  const T a = ((x > T(0) ? x : T(0)) + of.softplus_tail()) / beta;
  const T slope = x < T(0) ? of.small : of.big;
  return {x > threshold ? z : a, x > threshold ? T(1) : slope, x >= threshold ? T(0) : beta * of.big * of.small};
}

template <typename T>
CHAOS_EXT_HD ActivationValues<T> silu_values(T z) {
  const SigmoidParts<T> g = sigmoid_parts(z);
  return {z * g.s, g.s * (T(1) + z * g.r), g.s * g.r * (T(2) - z * g.d)};
}

// z Phi(z); Phi' = phi, phi' = -z phi. Where phi underflows z^2 may overflow.
template <typename T>
CHAOS_EXT_HD ActivationValues<T> gelu_erf_values(T z) {
  using std::erfc;
  const T cdf = T(0.5) * erfc(z * T(-0.70710678118654752440));
  const T pdf = T(0.39894228040143267794) * exp_parts(T(-0.5) * z * z).exp;
  const bool flat = pdf == T(0);
  return {z * cdf, flat ? cdf : cdf + z * pdf, flat ? T(0) : pdf * (T(2) - z * z)};
}

// z sigma(2 u), u = sqrt(2 / pi) (z + 0.044715 z^3): equal to 0.5 z (1 + tanh u) without its cancellation. Where
// sigma' underflows the powers of z may overflow.
template <typename T>
CHAOS_EXT_HD ActivationValues<T> gelu_tanh_values(T z) {
  const T root = T(0.79788456080286535588);
  const T cubic = T(0.044715);
  const T v = T(2) * root * z * (T(1) + cubic * z * z);
  const SigmoidParts<T> g = sigmoid_parts(v);
  const T slope = g.s * g.r;
  const T v1 = T(2) * root * (T(1) + T(3) * cubic * z * z);
  const T v2 = T(12) * root * cubic * z;
  const T s1 = slope * v1;
  const T s2 = slope * (v2 - v1 * v1 * g.d);
  const bool flat = slope == T(0);
  return {z * g.s, flat ? g.s : g.s + z * s1, flat ? T(0) : T(2) * s1 + z * s2};
}

template <typename T>
CHAOS_EXT_HD ActivationValues<T> hardtanh_values(T z, T low, T high) {
  return {z < low ? low : (z > high ? high : z), z > low && z < high ? T(1) : T(0), T(0)};
}

template <Activation kind, typename T>
CHAOS_EXT_HD ActivationValues<T> finite_activation_values(T z, T alpha, T beta) {
  if constexpr (kind == Activation::kRelu) return {z > T(0) ? z : T(0), z > T(0) ? T(1) : T(0), T(0)};
  if constexpr (kind == Activation::kLeakyRelu) return {z > T(0) ? z : alpha * z, z > T(0) ? T(1) : alpha, T(0)};
  if constexpr (kind == Activation::kElu) return elu_values(z, alpha, T(1), T(1));
  if constexpr (kind == Activation::kSelu) {
    return elu_values(z, T(1.6732632423543772848170429916717), T(1.0507009873554804934193349852946), T(1));
  }
  if constexpr (kind == Activation::kCelu) return elu_values(z, alpha, T(1), T(1) / alpha);
  if constexpr (kind == Activation::kSigmoid) return sigmoid_values(z);
  if constexpr (kind == Activation::kTanh) return tanh_values(z);
  if constexpr (kind == Activation::kSoftplus) return softplus_values(z, alpha, beta);
  if constexpr (kind == Activation::kSilu) return silu_values(z);
  if constexpr (kind == Activation::kGeluErf) return gelu_erf_values(z);
  if constexpr (kind == Activation::kGeluTanh) return gelu_tanh_values(z);
  if constexpr (kind == Activation::kHardtanh) return hardtanh_values(z, alpha, beta);
}

template <Activation kind, typename T>
CHAOS_EXT_HD ActivationValues<T> activation_values(T z, T alpha, T beta) {
  const ActivationValues<T> v = finite_activation_values<kind>(z, alpha, beta);
  const bool nan = z != z;
  return {nan ? z : v.a, nan ? z : v.d1, nan ? z : v.d2};
}

// Calls body with the run-time kind as a compile-time constant: body(std::integral_constant-like tag).
template <Activation kind>
struct ActivationTag {
  static constexpr Activation value = kind;
};

template <typename Body>
inline void dispatch_activation(Activation kind, const Body& body) {
  switch (kind) {
    case Activation::kRelu: return body(ActivationTag<Activation::kRelu>{});
    case Activation::kLeakyRelu: return body(ActivationTag<Activation::kLeakyRelu>{});
    case Activation::kElu: return body(ActivationTag<Activation::kElu>{});
    case Activation::kSelu: return body(ActivationTag<Activation::kSelu>{});
    case Activation::kCelu: return body(ActivationTag<Activation::kCelu>{});
    case Activation::kSigmoid: return body(ActivationTag<Activation::kSigmoid>{});
    case Activation::kTanh: return body(ActivationTag<Activation::kTanh>{});
    case Activation::kSoftplus: return body(ActivationTag<Activation::kSoftplus>{});
    case Activation::kSilu: return body(ActivationTag<Activation::kSilu>{});
    case Activation::kGeluErf: return body(ActivationTag<Activation::kGeluErf>{});
    case Activation::kGeluTanh: return body(ActivationTag<Activation::kGeluTanh>{});
    case Activation::kHardtanh: return body(ActivationTag<Activation::kHardtanh>{});
    case Activation::kCount: return;
  }
}

}  // namespace chaos_ext
