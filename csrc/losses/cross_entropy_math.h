// The per-class formulas of cross-entropy, shared by CPU and CUDA; see cross_entropy.h for the whole.
#pragma once

#include "../common/host_device.h"

namespace chaos_ext {

// What a row's reductions leave behind; index -1 never occurs for C >= 1.
template <typename T>
struct CrossEntropyRow {
  T z_max;        // m, the maximal logit
  int64_t z_arg;  // where it is, first one on ties
  T exp_others;   // S = sum_{c != z_arg} exp(z_c - m)
  T t_max;        // the largest target weight
  int64_t t_arg;  // where it is, first one on ties
  T t_others;     // sum_{c != t_arg} t_c
};

// Where a row's target weights come from: memory [N, C], or its label.
template <typename T>
struct DenseTargets {
  const T* t;  // [N, C]
  int64_t classes;

  CHAOS_EXT_HD T operator()(int64_t n, int64_t c) const { return t[n * classes + c]; }
};

template <typename T>
struct LabelTargets {
  const int64_t* y;  // [N]
  T own, others;

  CHAOS_EXT_HD T operator()(int64_t n, int64_t c) const { return c == y[n] ? own : others; }
};

template <typename T>
CHAOS_EXT_HD T cross_entropy_loss(const CrossEntropyRow<T>& row, T z, T t) {
  using std::log1p;
  return t == T(0) ? T(0) : t * ((row.z_max - z) + log1p(row.exp_others));
}

template <typename T>
CHAOS_EXT_HD T cross_entropy_p(const CrossEntropyRow<T>& row, T z) {
  using std::exp;
  return exp(z - row.z_max) / (T(1) + row.exp_others);
}

// p_c sum_{c' != c} t_c' - t_c sum_{c' != c} p_c'.
template <typename T>
CHAOS_EXT_HD T cross_entropy_delta(const CrossEntropyRow<T>& row, int64_t c, T p, T t) {
  const T t_rest = c == row.t_arg ? row.t_others : row.t_others + row.t_max - t;
  const T p_rest = c == row.z_arg ? row.exp_others / (T(1) + row.exp_others) : T(1) - p;
  return p * t_rest - t * p_rest;
}

// The class with the largest p, the first one on ties.
template <typename T>
CHAOS_EXT_HD int64_t most_probable(const T* p, int64_t classes) {
  int64_t top = 0;
  for (int64_t c = 1; c < classes; ++c) {
    if (p[c] > p[top]) top = c;
  }
  return top;
}

// s (diag p - p p^T) dz of one row, on dz minus dz at the most probable class (base), where nothing cancels: first
// every class adds to the mean, then each has its tangent. V: a number, or a vector of columns.
template <typename T, typename V>
CHAOS_EXT_HD void softmax_mean(T p, const V& dz, const V& base, V& mean) {
  mean += p * (dz - base);
}

template <typename T, typename V>
CHAOS_EXT_HD void softmax_tangent(T s, T p, const V& dz, const V& base, const V& mean, V& out) {
  out = (s * p) * ((dz - base) - mean);
}

}  // namespace chaos_ext
