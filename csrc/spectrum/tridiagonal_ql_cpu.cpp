// tridiagonal_ql on the CPU. Formulas and cost: tridiagonal_ql.h.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

#include "../common/huge_pages_cpu.h"
#include "tridiagonal_ql.h"

namespace chaos_ext {
namespace {

constexpr int64_t kSweepsPerValue = 30;  // on average; more is no convergence
constexpr int64_t kLag = 2;              // places between two sweeps
// Waves without a value before a single sweep, whose shift always converges, and before the tolerance doubles, in case
// e_i sits in the rounding errors of a multiple eigenvalue.
constexpr int64_t kPatience = 8;

struct Sweep {
  double g, s, c, p;
  double* out;  // (c, s) of the next rotation; null: not kept
};

inline void start(double* d, int64_t m, double sigma, double* out, Sweep& w) { w = {d[m] - sigma, 1, 1, 0, out}; }

// The step at i; `first`: i = m - 1, where e_{i+1} belongs to another block.
template <bool kKeep>
inline void step(double* d, double* e, int64_t i, bool first, Sweep& w) {
  const double f = w.s * e[i], b = w.c * e[i], square = f * f + w.g * w.g;
  const bool tiny = square < 1e-280;  // zero beside a matrix of scale 1, and its root would have lost digits
  const double r = tiny ? 0.0 : std::sqrt(square), inverse = 1 / r;
  w.s = tiny ? 0.0 : f * inverse;
  w.c = tiny ? 1.0 : w.g * inverse;
  if (!first) e[i + 1] = r;
  const double q = d[i + 1] - w.p, t = (d[i] - q) * w.s + 2 * w.c * b;
  w.p = w.s * t;
  d[i + 1] = q + w.p;
  w.g = w.c * t - b;
  if (kKeep) {
    w.out[0] = w.c;
    w.out[1] = w.s;
    w.out += 2;
  }
}

inline void finish(double* d, double* e, int64_t l, const Sweep& w) {
  d[l] -= w.p;
  e[l] = w.g;
}

// The last index of the unreduced block that starts at l.
inline int64_t block_end(const double* e, int64_t l, int64_t last, double small) {
  while (l < last && std::abs(e[l]) > small) ++l;
  return l;
}

// The eigenvalue of [[a, b], [b, c]] nearer to a.
inline double wilkinson(double a, double b, double c) {
  const double g = (c - a) / (2 * b), r = std::hypot(g, 1.0);
  return a - b / (g + std::copysign(r, g));
}

// Eigenvalues of a small block by single sweeps, in place of d; used as shifts only, so they need not converge.
inline void small_values(double* d, double* e, int64_t n, double small) {
  for (int64_t l = 0, sweeps = 0; l + 1 < n && sweeps < 10 * n;) {
    const int64_t m = block_end(e, l, n - 1, small);
    if (m == l) {
      ++l;
      continue;
    }
    Sweep w;
    start(d, m, wilkinson(d[l], e[l], d[l + 1]), nullptr, w);
    for (int64_t i = m - 1; i >= l; --i) step<false>(d, e, i, i == m - 1, w);
    finish(d, e, l, w);
    ++sweeps;
  }
}

class Ql {
 public:
  Ql(double* d, double* e, int64_t n, double small, const Tensor& like)
      : rotations(room(like, 1)), d_(d), e_(e), n_(n), small_(small) {}

  // false: no convergence.
  bool run() {
    const int64_t limit = kSweepsPerValue * n_;
    for (int64_t l = 0, waves = 0; l < n_;) {
      const int64_t m = block_end(e_, l, n_ - 1, small_ * static_cast<double>(1 + waves / kPatience));
      if (m > l) {
        if (static_cast<int64_t>(sweeps.size()) / 3 > limit) return false;
        wave(l, m, ++waves % kPatience == 0 ? 1 : kSweeps);
      } else {
        ++l;
        waves = 0;
      }
    }
    return true;
  }

  std::vector<int64_t> sweeps;  // (l, m, first rotation)
  Tensor rotations;             // [room, 2]
  int64_t used = 0;

 private:
  void wave(int64_t l, int64_t m, int64_t most) {
    double shift[kSweeps];
    const int64_t length = m - l, count = std::min(most, (length + 1) / 2);
    shifts(l, count, shift);
    reserve(used + count * length);
    Sweep w[kSweeps];
    for (int64_t k = 0; k < count; ++k) {
      sweeps.insert(sweeps.end(), {l, m, used});
      w[k].out = mutable_data<double>(rotations) + 2 * used;
      used += length;
    }
    const int64_t lag = kLag * (count - 1), steady = count == kSweeps ? length - 1 : 0;
    int64_t t = 0;
    for (; t <= lag; ++t) ragged(l, m, t, count, shift, w);
    for (; t < steady; ++t) {
      for (int64_t k = 0; k < kSweeps; ++k) step<true>(d_, e_, m - 1 - t + kLag * k, false, w[k]);
    }
    for (; t < length + lag; ++t) ragged(l, m, t, count, shift, w);
  }

  // All sweeps that are under way at time t.
  void ragged(int64_t l, int64_t m, int64_t t, int64_t count, const double* shift, Sweep* w) {
    for (int64_t k = 0; k < count; ++k) {
      const int64_t i = m - 1 - (t - kLag * k);
      if (i < l || i > m - 1) continue;
      if (i == m - 1) start(d_, m, shift[k], w[k].out, w[k]);
      step<true>(d_, e_, i, i == m - 1, w[k]);
      if (i == l) finish(d_, e_, l, w[k]);
    }
  }

  static Tensor room(const Tensor& like, int64_t pairs) {
    Tensor fresh = new_double(like, {pairs, 2});
    use_huge_pages(fresh);
    return fresh;
  }

  // Memory that is not touched costs nothing, so the first guess is a generous one.
  void reserve(int64_t pairs) {
    if (pairs <= rotations.size(0)) return;
    Tensor larger = room(rotations, std::max(2 * pairs, n_ * n_ + 64 * n_));
    std::copy_n(data<double>(rotations), 2 * used, mutable_data<double>(larger));
    rotations = larger;
  }

  // The eigenvalues of the leading [count, count] block, for a single sweep Wilkinson's.
  void shifts(int64_t l, int64_t count, double* shift) const {
    if (count == 1) {
      shift[0] = wilkinson(d_[l], e_[l], d_[l + 1]);
      return;
    }
    double e[kSweeps];
    std::copy(d_ + l, d_ + l + count, shift);
    std::copy(e_ + l, e_ + l + count - 1, e);
    small_values(shift, e, count, small_);
  }

  double *d_, *e_;
  int64_t n_;
  double small_;
};

inline Tensor new_long(const Tensor& like, std::initializer_list<int64_t> shape) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()),
                                  ScalarType::Long);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> tridiagonal_ql_cpu(const Tensor& d,  // [n]
                                                              const Tensor& e,  // [n - 1]
                                                              double tol) {
  check_ql(d, e, tol);
  const int64_t n = d.size(0);
  std::vector<double> D(data<double>(d), data<double>(d) + n), E(n, 0.0);
  if (n > 1) std::copy_n(data<double>(e), n - 1, E.begin());
  double largest = 0, poison = 0;
  for (const double* v : {D.data(), E.data()}) {
    for (int64_t i = 0; i < n; ++i) {
      largest = std::max(largest, std::abs(v[i]));
      poison += v[i] * 0;
    }
  }
  const bool finite = poison == 0;
  const double scale = finite && largest > 0 ? std::ldexp(1.0, -std::clamp(std::ilogb(largest), -1022, 1022)) : 1.0;
  for (double& v : D) v *= scale;
  for (double& v : E) v *= scale;
  Ql ql(D.data(), E.data(), n, std::max(tol * largest * scale, 1e-140), d);
  const bool converged = finite && ql.run();
  Tensor values = new_double(d, {n}), order = new_long(d, {n});
  int64_t* at = mutable_data<int64_t>(order);
  std::iota(at, at + n, 0);
  if (converged) std::stable_sort(at, at + n, [&](int64_t a, int64_t b) { return D[a] < D[b]; });
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (int64_t i = 0; i < n; ++i) mutable_data<double>(values)[i] = converged ? D[at[i]] / scale : nan;
  const int64_t count = static_cast<int64_t>(ql.sweeps.size()) / 3;
  Tensor sweeps = new_long(d, {count, 3});
  std::copy(ql.sweeps.begin(), ql.sweeps.end(), mutable_data<int64_t>(sweeps));
  return {values, order, sweeps, torch::stable::narrow(ql.rotations, 0, 0, ql.used)};
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CPU, m) { m.impl("tridiagonal_ql", TORCH_BOX(&chaos_ext::tridiagonal_ql_cpu)); }
