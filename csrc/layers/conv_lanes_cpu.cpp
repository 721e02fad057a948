// conv_lanes_ on the CPU. Formulas: conv_lanes.h; the plan: conv_lanes_plan.h. Parallel over (channel or sample, panel
// of columns): an entry of out belongs to one thread, and its sum has one order whatever their number.

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <numeric>

#include "../common/cpu_target.h"
#include "conv_lanes_plan.h"

namespace chaos_ext {
namespace {

#define CE_FILE "../layers/conv_lanes_kernel.inl"
#include "../common/foreach_target.inl"

const ConvKernels<float>& kernels_for(float) { return CE_CHOOSE(float, kernels); }
const ConvKernels<double>& kernels_for(double) { return CE_CHOOSE(double, kernels); }

constexpr int64_t kTaskWork = 1 << 20;      // multiply-adds that are worth a thread
constexpr int64_t kUnfoldedSize = 1 << 18;  // numbers of an unfolded operand at a time, near the cache
constexpr int64_t kBlockedRows = 256;       // gathered rows of a panel that stay in the L2 cache

template <typename T>
struct ConvProblem {
  ConvShape s;
  T* out;
  const T* scalars;
  const T* lanes;
  bool accumulate;
};

// Calls body(outer, x0, x1) for every outer index and panel of columns.
template <typename T, typename Body>
void for_each_panel(int64_t outer, int64_t k, int64_t work, const Body& body) {
  const int64_t panel = kernels_for(T{}).panel, panels = (k + panel - 1) / panel;
  const int64_t grain =
      std::max<int64_t>(1, kTaskWork / std::max<int64_t>(1, work / std::max<int64_t>(1, outer * panels)));
  torch::stable::parallel_for(0, outer * panels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t x = task % panels * panel;
      body(task / panels, x, std::min(k, x + panel));
    }
  });
}

std::vector<int64_t> multiples(int64_t count, int64_t step) {
  std::vector<int64_t> out(count);
  for (int64_t i = 0; i < count; ++i) out[i] = i * step;
  return out;
}

std::vector<int64_t> scaled(std::vector<int64_t> values, int64_t factor) {
  for (int64_t& value : values) value *= factor;
  return values;
}

int64_t work_of(const ConvShape& s) { return s.N * s.O * s.positions() * s.Cg * s.taps() * s.k; }

// Kinds 0 (forward: out Z, lanes X) and 2 (out X, lanes Z): the weight is plain.
template <typename T>
void with_plain_weight(const ConvProblem<T>& q, bool forward) {
  const ConvShape& s = q.s;
  const int64_t Og = s.Og(), k = s.k;
  const int64_t M = forward ? Og : s.Cg, Ko = forward ? s.Cg : Og;
  const int64_t out_places = forward ? s.positions() : s.pixels(), lane_places = forward ? s.pixels() : s.positions();
  const int64_t rows = kernels_for(T{}).rows_of(M), K = Ko * s.taps();
  const std::unique_ptr<T[]> A = weight_in_tiles(s, q.scalars, forward, rows);
  TapLists lists = forward ? taps_by_position(s) : taps_by_pixel(s);
  for (int64_t& tap : lists.tap) tap *= rows;
  const std::vector<int64_t> c_rows = multiples(M, out_places * k);
  for_each_panel<T>(s.N * s.groups, k, work_of(s), [&](int64_t ng, int64_t x0, int64_t x1) {
    GatheredProduct<T> product{};
    product.A = A.get() + ng % s.groups * tiled_size(M, K, rows);
    product.rows = rows, product.a_tile = K * rows, product.a_outer = s.taps() * rows;
    product.B = q.lanes + ng * Ko * lane_places * k, product.b_outer = lane_places * k;
    product.Ko = Ko, product.M = M, product.c_rows = c_rows.data(), product.accumulate = q.accumulate;
    for (int64_t place = 0; place < out_places; ++place) {
      const int64_t from = lists.start[place];
      product.a_taps = lists.tap.data() + from, product.b_taps = lists.row.data() + from;
      product.Ki = lists.start[place + 1] - from;
      product.C = q.out + (ng * M * out_places + place) * k;
      kernels_for(T{}).product(product, x0, x1);
    }
  });
}

// Kinds 1, 3, 4, 5: the input (of_input) or the cotangent is plain and unfolded; to_weight: out is the weight.
struct Unfolding {
  bool of_input, to_weight;
  int64_t inner, own;          // channels of the plain operand, and products, of one group
  int64_t image, sample;       // numbers with lanes of one channel, and of one sample
  int64_t weight, inner_step;  // from one product's weights to the next, and from one inner channel to the next

  Unfolding(const ConvShape& s, bool of_input, bool to_weight) : of_input(of_input), to_weight(to_weight) {
    const int64_t kernel = s.taps() * s.k;
    inner = of_input ? s.Cg : s.Og();
    own = of_input ? s.Og() : s.Cg;
    image = (of_input ? s.positions() : s.pixels()) * s.k;
    sample = own * s.groups * image;
    weight = of_input ? s.Cg * kernel : kernel;
    inner_step = of_input ? kernel : s.Cg * kernel;
  }

  // Samples unfolded at a time.
  int64_t samples(const ConvShape& s, const std::vector<PlaceClass>& classes) const {
    int64_t places = 0, entries = 0;
    for (const PlaceClass& own : classes) {
      places += own.places.size();
      entries += inner * own.places.size() * own.taps.size();
    }
    const int64_t blocked = to_weight ? kBlockedRows / std::max<int64_t>(1, places) : s.N;
    return std::max<int64_t>(1, std::min({s.N, kUnfoldedSize / std::max<int64_t>(1, entries), blocked}));
  }
};

// The product of one class of places with samples n0 to n1 of group g; B and C are those of the group's first product.
template <typename T>
struct ClassProduct {
  GatheredProduct<T> product{};
  std::unique_ptr<T[]> A;
  std::vector<int64_t> a_taps, weight_rows, place_rows, c_rows;

  ClassProduct(const ConvProblem<T>& q, const Unfolding& u, const PlaceClass& own, int64_t g, int64_t n0, int64_t n1) {
    const ConvShape& s = q.s;
    const int64_t taps = own.taps.size(), places = own.places.size(), count = (n1 - n0) * places, J = u.inner * taps;
    const int64_t M = u.to_weight ? J : count, K = u.to_weight ? count : J, inner = u.to_weight ? places : taps;
    const int64_t rows = kernels_for(T{}).rows_of(M);
    A = unfolded(s, q.scalars, u.of_input, g, n0, n1, own, u.to_weight, rows);
    weight_rows = scaled(own.taps, s.k), place_rows = scaled(own.places, s.k), a_taps = multiples(inner, rows);
    c_rows.resize(M);
    for (int64_t m = 0; m < M; ++m) {
      c_rows[m] = u.to_weight ? m / taps * u.inner_step + weight_rows[m % taps]
                              : m / places * u.sample + place_rows[m % places];
    }
    const int64_t weight = g * s.Og() * s.Cg * s.taps() * s.k, images = n0 * u.sample + g * u.own * u.image;
    product.A = A.get(), product.rows = rows, product.a_tile = K * rows;
    product.a_outer = inner * rows, product.a_taps = a_taps.data();
    product.B = q.lanes + (u.to_weight ? images : weight), product.b_outer = u.to_weight ? u.sample : u.inner_step;
    product.b_taps = u.to_weight ? place_rows.data() : weight_rows.data();
    product.Ko = u.to_weight ? n1 - n0 : u.inner, product.Ki = inner;
    product.C = q.out + (u.to_weight ? weight : images), product.c_rows = c_rows.data(), product.M = M;
  }
};

// Samples n0 to n1 of group g.
template <typename T>
void unfolded_block(const ConvProblem<T>& q, const Unfolding& u, const std::vector<PlaceClass>& classes, int64_t g,
                    int64_t n0, int64_t n1, bool accumulate) {
  const ConvShape& s = q.s;
  std::vector<ClassProduct<T>> products;
  for (const PlaceClass& own : classes) {
    if (own.taps.empty() && (u.to_weight || accumulate)) continue;
    products.emplace_back(q, u, own, g, n0, n1);
    products.back().product.accumulate = accumulate;
  }
  for_each_panel<T>(u.own, s.k, work_of(s) / s.groups * (n1 - n0) / s.N, [&](int64_t own, int64_t x0, int64_t x1) {
    const int64_t of_weight = own * u.weight, of_image = own * u.image;
    for (const ClassProduct<T>& p : products) {
      GatheredProduct<T> product = p.product;
      product.B += u.to_weight ? of_image : of_weight;
      product.C += u.to_weight ? of_weight : of_image;
      kernels_for(T{}).product(product, x0, x1);
    }
  });
}

template <typename T>
void with_unfolded(const ConvProblem<T>& q, bool of_input, bool to_weight) {
  const ConvShape& s = q.s;
  const Unfolding u(s, of_input, to_weight);
  // Sums over places are long: a few zeros at the border cost less than shorter sums.
  const std::vector<PlaceClass> classes = place_classes(s, of_input, !to_weight);
  int64_t reached = 0;  // each tap belongs to one class of those that only the stride makes
  for (const PlaceClass& own : classes) reached += static_cast<int64_t>(own.taps.size());
  const bool clear = to_weight && !q.accumulate && reached < s.taps();
  if (clear) std::fill_n(q.out, s.O * s.Cg * s.taps() * s.k, T(0));
  const int64_t samples = u.samples(s, classes);
  for (int64_t g = 0; g < s.groups; ++g) {
    for (int64_t n0 = 0; n0 < s.N; n0 += samples) {
      const bool more = q.accumulate || clear || (to_weight && n0 > 0);
      unfolded_block(q, u, classes, g, n0, std::min(s.N, n0 + samples), more);
    }
  }
}

void conv_lanes_cpu(Tensor& out,            // [.., k]
                    const Tensor& scalars,  // four axes
                    const Tensor& lanes,    // [.., k]
                    int64_t kind, IntHeaderOnlyArrayRef stride, IntHeaderOnlyArrayRef padding,
                    IntHeaderOnlyArrayRef dilation, int64_t groups, bool accumulate) {
  const ConvShape s = check_conv_lanes(out, scalars, lanes, kind, stride, padding, dilation, groups);
  if (out.numel() == 0) return;
  if (scalars.numel() == 0 || lanes.numel() == 0) {
    if (!accumulate) torch::stable::zero_(out);
    return;
  }
  dispatch_floating(out, [&](auto zero) {
    using T = decltype(zero);
    const ConvProblem<T> q{s, mutable_data<T>(out), data<T>(scalars), data<T>(lanes), accumulate};
    switch (kind) {
      case 0: return with_plain_weight(q, true);
      case 1: return with_unfolded(q, true, false);
      case 2: return with_plain_weight(q, false);
      case 3: return with_unfolded(q, false, false);
      case 4: return with_unfolded(q, true, true);
      case 5: return with_unfolded(q, false, true);
    }
  });
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CPU, m) { m.impl("conv_lanes_", TORCH_BOX(&chaos_ext::conv_lanes_cpu)); }
