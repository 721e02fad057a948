// The coefficients of norm_tangent.h, shared by the CPU kernels, the CUDA kernels and their emulator.
//
// With n = B M, means over a group, p = r (delta - mean delta - xh q), q = mean(xh delta), and the sums over a group
//
//     D = sum d,  D_h = sum xh d,  D_p = sum p d,   E = sum ddelta,  E_h = sum xh ddelta,
//
// the tangent of the normalised value is dxh = r (d - D / n - xh D_h / n); sum dxh delta = D_p because x -> xh has a
// symmetric Jacobian; and
//
//     dz         = r gamma d + (dbeta - r gamma D / n) + xh (dgamma - r gamma D_h / n)
//     d(delta_x) = r gamma ddelta - r^2 gamma q d + r gamma (r q D - E) / n + xh r gamma (r q D_h - D_p - E_h) / n
//                  + p (dgamma - r gamma D_h / n)
//     d(g_gamma) = E_h + D_p,    d(g_beta) = E.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace chaos_ext {

struct NormShape {
  int64_t B, G, M, k;

  CHAOS_EXT_HD_MEMBER int64_t count() const { return B * M; }                                  // entries of a group
  CHAOS_EXT_HD_MEMBER int64_t segment(int64_t b, int64_t g) const { return (b * G + g) * M; }  // where M of them begin
};

template <typename T>
struct NormProblem {
  NormShape s;
  T *out, *dweight, *dbias;                          // [B, G, M, k], [G, k], [G, k]
  const T *d, *ddelta;                               // [B, G, M, k] or null
  const T *xh, *delta, *r, *gamma, *dgamma, *dbeta;  // [B, G, M] twice, [G] twice, [G, k] twice; null: zero or one
};

// What a group's plain values say.
template <typename T>
struct NormGroup {
  T r, scale, mean, q, inverse;  // scale = r gamma, mean of delta, inverse = 1 / n

  CHAOS_EXT_HD_MEMBER T p(T delta, T xh) const { return r * (delta - mean - xh * q); }

  // p sums to zero but for rounding, which is alike in many entries (delta - mean rounds as delta's last digit does):
  // what the mean of d adds to D_p, of each of D.
  CHAOS_EXT_HD_MEMBER T leak(double p_total) const { return static_cast<T>(p_total * inverse); }
};

template <typename T>
CHAOS_EXT_HD NormGroup<T> norm_group(const NormProblem<T>& q, int64_t g, T mean, T mean_h) {
  const T r = q.r[g];
  return {r, q.gamma == nullptr ? r : r * q.gamma[g], mean, mean_h, T(1) / static_cast<T>(q.s.count())};
}

// Sums over a group; V is a number or a vector of columns.
template <typename V>
struct NormSums {
  V d, d_h, d_p, e, e_h;
};

// out = of_e ddelta + of_d d + constant + xh of_h + p of_p.
template <typename T, typename V>
struct NormCoefficients {
  T of_e, of_d;
  V constant, of_h, of_p;
};

template <typename T, typename V>
CHAOS_EXT_HD NormCoefficients<T, V> forward_coefficients(const NormGroup<T>& g, const NormSums<V>& s, const V& dgamma,
                                                         const V& dbeta) {
  const T scale = g.scale * g.inverse;
  return {T(0), g.scale, dbeta - scale * s.d, dgamma - scale * s.d_h, V{}};
}

template <typename T, typename V>
CHAOS_EXT_HD NormCoefficients<T, V> backward_coefficients(const NormGroup<T>& g, const NormSums<V>& s,
                                                          const V& dgamma) {
  const T scale = g.scale * g.inverse, rq = g.r * g.q;
  return {g.scale, -g.scale * rq, scale * (rq * s.d - s.e), scale * (rq * s.d_h - s.d_p - s.e_h),
          dgamma - scale * s.d_h};
}

}  // namespace chaos_ext
