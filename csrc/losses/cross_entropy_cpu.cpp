// cross_entropy, cross_entropy_labels and cross_entropy_tangent on the CPU. Formulas: cross_entropy.h. Parallel over
// rows n; the loss adds the rows' terms in order in float64, so it does not depend on the thread count.

#include <torch/csrc/stable/library.h>

#include "../common/sum_cpu.h"
#include "cross_entropy.h"
#include "cross_entropy_math.h"

namespace chaos_ext {
namespace {

constexpr int64_t kRowWork = 4096;  // elements a thread should have at least

int64_t rows_per_block(int64_t classes) { return std::max<int64_t>(1, kRowWork / classes); }

// The first of the largest x(0), .., x(n - 1).
template <typename X>
int64_t first_argmax(int64_t n, const X& x) {
  int64_t arg = 0;
  for (int64_t c = 1; c < n; ++c) {
    if (x(c) > x(arg)) arg = c;
  }
  return arg;
}

template <typename T, typename Targets>
CrossEntropyRow<T> reduce_row(const T* z, const Targets& t, int64_t n, int64_t classes) {
  CrossEntropyRow<T> row{};
  row.z_arg = first_argmax(classes, [&](int64_t c) { return z[c]; });
  row.z_max = z[row.z_arg];
  row.t_arg = first_argmax(classes, [&](int64_t c) { return t(n, c); });
  row.t_max = t(n, row.t_arg);
  for (int64_t c = 0; c < classes; ++c) {
    if (c != row.z_arg) row.exp_others += std::exp(z[c] - row.z_max);
    if (c != row.t_arg) row.t_others += t(n, c);
  }
  return row;
}

// Row n: writes delta and p, returns the row's part of the loss. z, delta and p point to the row.
template <typename T, typename Targets>
double cross_entropy_row(const T* z, const Targets& t, T* delta, T* p, int64_t n, int64_t classes) {
  const CrossEntropyRow<T> row = reduce_row(z, t, n, classes);
  double loss = 0.0;
  for (int64_t c = 0; c < classes; ++c) {
    p[c] = cross_entropy_p(row, z[c]);
    delta[c] = cross_entropy_delta(row, c, p[c], t(n, c));
    loss += cross_entropy_loss(row, z[c], t(n, c));
  }
  return loss;
}

template <typename T, typename Targets>
void cross_entropy_rows(const Tensor& z,  // [N, C]
                        const Targets& t, const CrossEntropyOutputs& out) {
  const int64_t rows = z.size(0), classes = z.size(1);
  const T* zp = data<T>(z);
  T *delta = mutable_data<T>(out.delta), *p = mutable_data<T>(out.p);
  const double loss = blocked_sum(rows, rows_per_block(classes + 1), [&](int64_t begin, int64_t end) {
    double sum = 0.0;
    for (int64_t n = begin; n < end; ++n) {
      const int64_t at = n * classes;
      sum += cross_entropy_row(zp + at, t, delta + at, p + at, n, classes);
    }
    return sum;
  });
  *mutable_data<T>(out.loss) = static_cast<T>(loss);
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy_cpu(const Tensor& z,    // [N, C]
                                                     const Tensor& t) {  // [N, C]
  const CrossEntropyOutputs out = prepare_cross_entropy(z, t);
  dispatch_floating(z, [&](auto zero) {
    using T = decltype(zero);
    cross_entropy_rows<T>(z, DenseTargets<T>{data<T>(t), z.size(1)}, out);
  });
  return out.tuple();
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy_labels_cpu(const Tensor& z,  // [N, C]
                                                            const Tensor& y,  // [N]
                                                            double own, double others) {
  const CrossEntropyOutputs out = prepare_cross_entropy_labels(z, y);
  dispatch_floating(z, [&](auto zero) {
    using T = decltype(zero);
    cross_entropy_rows<T>(z, LabelTargets<T>{data<int64_t>(y), static_cast<T>(own), static_cast<T>(others)}, out);
  });
  return out.tuple();
}

constexpr int64_t kTile = 64;  // columns at a time: their means stay in registers or L1

// One n and up to kTile columns: out = s (diag p - p p^T) dz.
template <typename T>
void tangent_tile(const T* p, T s, int64_t ref, const T* dz, T* out, int64_t classes, int64_t columns, int64_t tile) {
  T mean[kTile] = {};
  const T* base = dz + ref * columns;
  for (int64_t c = 0; c < classes; ++c) {
    const T* d = dz + c * columns;
    for (int64_t k = 0; k < tile; ++k) softmax_mean(p[c], d[k], base[k], mean[k]);
  }
  for (int64_t c = 0; c < classes; ++c) {
    const T* d = dz + c * columns;
    for (int64_t k = 0; k < tile; ++k) softmax_tangent(s, p[c], d[k], base[k], mean[k], out[c * columns + k]);
  }
}

Tensor cross_entropy_tangent_cpu(const Tensor& p,     // [N, C]
                                 const Tensor& s,     // [N]
                                 const Tensor& dz) {  // [N, C, k]
  const Tensor out = prepare_cross_entropy_tangent(p, s, dz);
  const int64_t rows = p.size(0), classes = p.size(1), columns = dz.size(2);
  if (dz.numel() == 0) return out;
  dispatch_floating(p, [&](auto zero) {
    using T = decltype(zero);
    const T *pp = data<T>(p), *sp = data<T>(s), *dzp = data<T>(dz);
    T* o = mutable_data<T>(out);
    torch::stable::parallel_for(0, rows, rows_per_block(classes * columns), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const T* pn = pp + n * classes;
        const int64_t ref = most_probable(pn, classes);
        for (int64_t k = 0; k < columns; k += kTile) {
          const int64_t at = n * classes * columns + k;
          tangent_tile(pn, sp[n], ref, dzp + at, o + at, classes, columns, std::min(kTile, columns - k));
        }
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CPU, m) {
  m.impl("cross_entropy", TORCH_BOX(&chaos_ext::cross_entropy_cpu));
  m.impl("cross_entropy_labels", TORCH_BOX(&chaos_ext::cross_entropy_labels_cpu));
  m.impl("cross_entropy_tangent", TORCH_BOX(&chaos_ext::cross_entropy_tangent_cpu));
}
