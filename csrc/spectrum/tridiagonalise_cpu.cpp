// tridiagonalise on the CPU. Formulas and cost: tridiagonalise.h. The inner loops
// (tridiagonalise_kernel.inl) are compiled for several instruction sets and chosen at run time.
//
// Parallel over blocks of rows, dealt out in turn to a number of items that depends on n only, each with its own sum
// y; a team of threads (team_cpu.h) works on the items. Rounding does not depend on the number of threads.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "../common/cpu_target.h"
#include "../common/team_cpu.h"
#include "tridiagonalise.h"

namespace chaos_ext {
namespace {

template <typename T>
struct TridiagonalKernels {
  void (*symmetric_product)(const T* A, int64_t ld, int64_t size, int64_t first, int64_t step, const T* v, T* y);
  void (*update)(T* A, int64_t ld, int64_t size, int64_t first, int64_t step, const T* left, const T* panel,
                 int64_t depth);
  void (*subtract)(const T* c, const T* panel, int64_t ld, int64_t depth, int64_t size, T* y);
  void (*products)(const T* panel, int64_t ld, int64_t depth, int64_t size, const T* v, T* out);
  double (*product)(const T* a, const T* b, int64_t size);
  void (*add)(double c, const T* a, int64_t size, T* y);
};

#define CE_FILE "../spectrum/tridiagonalise_kernel.inl"
#include "../common/foreach_target.inl"

const TridiagonalKernels<float>& kernels_for(float) { return CE_CHOOSE(float, kernels); }
const TridiagonalKernels<double>& kernels_for(double) { return CE_CHOOSE(double, kernels); }

constexpr int64_t kDepth = 16;      // rows whose updates are collected
constexpr int64_t kItemRows = 256;  // of the matrix, for each item
constexpr int64_t kMaxItems = 32;
constexpr int64_t kSerialRows = 160;  // a smaller product is not worth a phase

// ---- the reduction -------------------------------------------------------------------------------------------------

template <typename T>
class Reduction {
 public:
  // A [padded_rows(n), ld] holds the lower triangle and whole diagonal blocks, scaled to at most 1.
  Reduction(T* A, int64_t n, T* work, double* d, double* e)
      : A_(A), n_(n), ld_(padded_stride(n)), items_(items(n)), d_(d), e_(e) {
    V_ = work;
    W_ = V_ + kDepth * ld_;
    left_ = W_ + kDepth * ld_;
    y_ = left_ + 2 * kDepth * ld_;
    std::fill(work, work + work_size(n), T(0));
  }

  static int64_t items(int64_t n) { return std::clamp<int64_t>(n / kItemRows, 1, kMaxItems); }
  static int64_t work_size(int64_t n) { return (4 * kDepth + items(n)) * padded_stride(n); }

  void run(Team& team) {
    for (int64_t row = n_ - 1; row >= 0;) {
      for (depth_ = 0; depth_ < kDepth && row >= 0; ++depth_, --row) reduce_row(team, row);
      if (row >= 0) update(team, row + 1);
    }
  }

 private:
  void reduce_row(Team& team, int64_t i) {
    T *a = A_ + i * ld_, *v = V_ + depth_ * ld_, *w = W_ + depth_ * ld_;
    T c[2 * kDepth];
    for (int64_t k = 0; k < depth_; ++k) {
      c[k] = V_[k * ld_ + i];
      c[kDepth + k] = W_[k * ld_ + i];
    }
    k_.subtract(c, W_, ld_, depth_, i + 1, a);
    k_.subtract(c + kDepth, V_, ld_, depth_, i + 1, a);
    d_[i] = a[i];
    std::fill(w, w + padded_rows(i + 1), T(0));
    std::copy(a, a + i, v);
    std::fill(v + i, v + padded_rows(i + 1), T(0));
    if (i > 0 && reflector(v, i)) correction(team, v, w, i);
    std::copy(v, v + i, a);
    std::fill(a + i, a + ld_, T(0));
  }

  // v [i] from a row; false where there is nothing to annihilate (v = 0).
  bool reflector(T* v, int64_t i) {
    const double pivot = v[i - 1];
    v[i - 1] = 0;
    const double rest = k_.product(v, v, i), square = rest + pivot * pivot;
    const bool needed = rest > 0 && square >= kTiny;
    e_[i - 1] = needed ? -std::copysign(std::sqrt(square), pivot) : pivot;
    if (needed) {
      v[i - 1] = static_cast<T>(pivot - e_[i - 1]);
    } else {
      std::fill(v, v + i, T(0));
    }
    return needed;
  }

  void correction(Team& team, const T* v, T* w, int64_t i) {
    T c[2 * kDepth];
    const auto item = [&](int64_t t) {
      if (t < items_) k_.symmetric_product(A_, ld_, i, t, items_, v, y_ + t * ld_);
      if (t == items_) {
        k_.products(W_, ld_, depth_, i, v, c);
        k_.products(V_, ld_, depth_, i, v, c + kDepth);
      }
    };
    phase(team, i, item);
    const T one = -1;
    for (int64_t t = 0; t < items_; ++t) k_.subtract(&one, y_ + t * ld_, ld_, 1, i, w);
    k_.subtract(c, V_, ld_, depth_, i, w);
    k_.subtract(c + kDepth, W_, ld_, depth_, i, w);
    std::fill(w + i, w + padded_rows(i + 1), T(0));
    const double tau = 2 / k_.product(v, v, i), wv = k_.product(w, v, i);
    for (int64_t x = 0; x < i; ++x) w[x] *= static_cast<T>(tau);
    k_.add(-tau * (tau * wv) / 2, v, i, w);
  }

  void update(Team& team, int64_t size) {
    const int64_t depth = 2 * depth_;
    std::fill(left_, left_ + padded_rows(size) * depth, T(0));
    for (int64_t k = 0; k < depth_; ++k) {
      for (int64_t r = 0; r < size; ++r) {
        left_[r * depth + k] = W_[k * ld_ + r];
        left_[r * depth + depth_ + k] = V_[k * ld_ + r];
      }
    }
    phase(team, size, [&](int64_t t) {
      if (t < items_) k_.update(A_, ld_, size, t, items_, left_, V_, depth);
    });
  }

  template <typename Body>
  void phase(Team& team, int64_t size, const Body& body) {
    if (size > kSerialRows) return team.phase(body);
    for (int64_t t = 0; t <= items_; ++t) body(t);
  }

  // A sum of squares below this is zero beside a matrix of scale 1; above it, its digits are all there.
  static constexpr double kTiny = std::is_same_v<T, float> ? 1e-30 : 1e-280;

  T* A_;
  int64_t n_, ld_, items_, depth_ = 0;
  double *d_, *e_;
  T *V_, *W_, *left_, *y_;  // [kDepth, ld] twice in one piece, [ld, 2 kDepth], [items, ld]
  const TridiagonalKernels<T>& k_ = kernels_for(T{});
};

// A power of two that brings the largest |entry| of the lower triangle to about 1; 0 for zeros, NaN if not finite.
template <typename T>
double unit_scale(const T* S, int64_t n) {
  const int limit = std::numeric_limits<T>::max_exponent - 2;
  T largest = 0, poison = 0;
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t c = 0; c <= r; ++c) {
      largest = std::max(largest, std::abs(S[r * n + c]));
      poison += S[r * n + c] * T(0);
    }
  }
  if (poison != 0) return std::numeric_limits<double>::quiet_NaN();
  return largest == 0 ? 0 : std::ldexp(1.0, -std::clamp(std::ilogb(largest), -limit, limit));
}

// The lower triangle, with whole diagonal blocks, of scale S; zeros beyond n.
template <typename T>
void copy_lower(const T* S, int64_t n, T scale, T* A) {
  const int64_t ld = padded_stride(n);
  torch::stable::parallel_for(0, padded_rows(n), kItemRows, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      T* row = A + r * ld;
      std::fill(row + r / kBlock * kBlock, row + ld, T(0));
      if (r >= n) {
        std::fill(row, row + ld, T(0));
        continue;
      }
      for (int64_t c = 0; c <= r; ++c) row[c] = scale * S[r * n + c];
      for (int64_t c = r + 1; c < std::min(n, r / kBlock * kBlock + kBlock); ++c) row[c] = scale * S[c * n + r];
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> tridiagonalise_cpu(const Tensor& S) {  // [n, n]
  check_tridiagonalise(S);
  const int64_t n = S.size(0), rows = padded_rows(n), ld = padded_stride(n);
  Tensor A = new_empty(S, {rows, ld}), d = new_double(S, {n}), e = new_double(S, {std::max<int64_t>(n - 1, 0)});
  if (n == 0) return {A, d, e};
  double *dp = mutable_data<double>(d), *ep = mutable_data<double>(e);
  dispatch_floating(S, [&](auto zero) {
    using T = decltype(zero);
    const double scale = unit_scale(data<T>(S), n);
    if (!(scale > 0)) {
      std::fill(mutable_data<T>(A), mutable_data<T>(A) + rows * ld, T(0));
      std::fill(dp, dp + n, scale);
      std::fill(ep, ep + n - 1, scale);
      return;
    }
    copy_lower(data<T>(S), n, static_cast<T>(scale), mutable_data<T>(A));
    const Tensor work = new_empty(S, {Reduction<T>::work_size(n)});
    Reduction<T> reduction(mutable_data<T>(A), n, mutable_data<T>(work), dp, ep);
    Team::run(Reduction<T>::items(n) + 1, [&](Team& team) { reduction.run(team); });
    for (int64_t i = 0; i < n; ++i) dp[i] /= scale;
    for (int64_t i = 0; i + 1 < n; ++i) ep[i] /= scale;
  });
  return {A, d, e};
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CPU, m) { m.impl("tridiagonalise", TORCH_BOX(&chaos_ext::tridiagonalise_cpu)); }
