// conv_lanes_ on the CPU. Formulas: conv_lanes.h. Two ways: products with gathered rows, columns as lanes
// (conv_lanes_plan.h and conv_lanes_unfold.h), for columns that fill vectors; dense products, columns among the lanes
// or the rows (conv_lanes_folded.h), for all others and where little is copied. Parallel over (channel or sample, panel
// of columns) or blocks of the result: an entry of out belongs to one thread, and its sum has one order whatever their
// number.

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <numeric>

#include "../common/cpu_target.h"
#include "conv_lanes_folded_run.h"
#include "conv_lanes_rows.h"

namespace chaos_ext {
namespace {

#define CE_FILE "../layers/conv_lanes_kernel.inl"
#include "../common/foreach_target.inl"

const ConvKernels<float>& kernels_for(float) { return CE_CHOOSE(float, kernels); }
const ConvKernels<double>& kernels_for(double) { return CE_CHOOSE(double, kernels); }

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

// Calls body(outer, x0, x1) for every outer index and panel of columns, none of which is narrower than a vector.
template <typename T, typename Body>
void for_each_panel(int64_t outer, int64_t k, int64_t work, const Body& body) {
  const int64_t panel = kernels_for(T{}).panel, vector = kernels_for(T{}).vector;
  const int64_t panels = std::max<int64_t>(1, k / panel + (k % panel >= vector));
  const int64_t grain =
      std::max<int64_t>(1, kTaskWork / std::max<int64_t>(1, work / std::max<int64_t>(1, outer * panels)));
  torch::stable::parallel_for(0, outer * panels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t own = task % panels;
      body(task / panels, own * panel, own + 1 == panels ? k : (own + 1) * panel);
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

// Kinds 0 and 2: the weight is plain, `from` has lanes, `to` is out. lists: the taps at each place of `to`.
template <typename T>
void with_plain_weight(const ConvProblem<T>& q, const Side& from, const Side& to, TapLists lists) {
  const ConvShape& s = q.s;
  const int64_t k = s.k, M = to.channels, Ko = from.channels, rows = kernels_for(T{}).rows_of(M), K = Ko * s.taps();
  const std::unique_ptr<T[]> A = weight_in_tiles(s, q.scalars, from, to, rows);
  for (int64_t& tap : lists.tap) tap *= rows;
  const std::vector<int64_t> c_rows = multiples(M, to.places() * k);
  for_each_panel<T>(s.N * s.groups, k, work_of(s), [&](int64_t ng, int64_t x0, int64_t x1) {
    GatheredProduct<T> product{};
    product.A = A.get() + ng % s.groups * tiled_size(M, K, rows);
    product.rows = rows, product.a_tile = K * rows, product.a_outer = s.taps() * rows;
    product.B = q.lanes + ng * Ko * from.places() * k, product.b_outer = from.places() * k;
    product.Ko = Ko, product.M = M, product.c_rows = c_rows.data(), product.accumulate = q.accumulate;
    for (int64_t place = 0; place < to.places(); ++place) {
      const int64_t start = lists.start[place];
      product.a_taps = lists.tap.data() + start, product.b_taps = lists.row.data() + start;
      product.Ki = lists.start[place + 1] - start;
      product.C = q.out + (ng * M * to.places() + place) * k;
      kernels_for(T{}).product(product, x0, x1);
    }
  });
}

// The products of one class of places with one part, one a channel of the other image: the first, and from one to the
// next.
template <typename T>
struct ClassProduct {
  GatheredProduct<T> first{};
  int64_t b_step, c_step;
  std::unique_ptr<T[]> A;
  std::vector<int64_t> a_taps, b_taps, c_rows;

  // M rows of K = Ko Ki terms, with A, b_taps and c_rows as they are.
  void set(int64_t M, int64_t Ko, int64_t Ki, int64_t rows) {
    a_taps = multiples(Ki, rows);
    first.A = A.get(), first.rows = rows, first.a_tile = Ko * Ki * rows, first.a_outer = Ki * rows;
    first.a_taps = a_taps.data(), first.b_taps = b_taps.data(), first.c_rows = c_rows.data();
    first.M = M, first.Ko = Ko, first.Ki = Ki;
  }
};

int64_t first_weight(const ConvShape& s, const Part& part) { return part.g * s.Og() * s.Cg * s.taps() * s.k; }
int64_t first_image(const Unfolding& u, const Part& part) {
  return part.n0 * u.sample + part.g * u.other.channels * u.image;
}

// Out is the weight, the other image has lanes.
template <typename T>
ClassProduct<T> to_weight(const ConvProblem<T>& q, const Unfolding& u, const PlaceClass& own, const Part& part) {
  const int64_t taps = own.taps.size(), M = u.plain.channels * taps, rows = kernels_for(T{}).rows_of(M);
  ClassProduct<T> p;
  p.A = taps_as_rows(q.s, u, part, own, q.scalars, rows);
  p.b_taps = scaled(own.places, q.s.k), p.c_rows.resize(M);
  for (int64_t m = 0; m < M; ++m) p.c_rows[m] = m / taps * u.inner_step + own.taps[m % taps] * q.s.k;
  p.set(M, part.samples(), own.places.size(), rows);
  p.first.B = q.lanes + first_image(u, part), p.first.b_outer = u.sample, p.b_step = u.image;
  p.first.C = q.out + first_weight(q.s, part), p.c_step = u.weight;
  return p;
}

// Out is the other image, the weight has lanes.
template <typename T>
ClassProduct<T> to_image(const ConvProblem<T>& q, const Unfolding& u, const PlaceClass& own, const Part& part) {
  const int64_t places = own.places.size(), M = part.samples() * places, rows = kernels_for(T{}).rows_of(M);
  ClassProduct<T> p;
  p.A = places_as_rows(q.s, u, part, own, q.scalars, rows);
  p.b_taps = scaled(own.taps, q.s.k), p.c_rows.resize(M);
  for (int64_t m = 0; m < M; ++m) p.c_rows[m] = m / places * u.sample + own.places[m % places] * q.s.k;
  p.set(M, u.plain.channels, own.taps.size(), rows);
  p.first.B = q.lanes + first_weight(q.s, part), p.first.b_outer = u.inner_step, p.b_step = u.weight;
  p.first.C = q.out + first_image(u, part), p.c_step = u.image;
  return p;
}

template <typename T>
void run_products(const ConvProblem<T>& q, const Unfolding& u, const Part& part, bool accumulate,
                  const std::vector<ClassProduct<T>>& products) {
  const ConvShape& s = q.s;
  const int64_t work = work_of(s) / s.groups * part.samples() / s.N;
  for_each_panel<T>(u.other.channels, s.k, work, [&](int64_t own, int64_t x0, int64_t x1) {
    for (const ClassProduct<T>& p : products) {
      GatheredProduct<T> product = p.first;
      product.accumulate = accumulate;
      product.B += own * p.b_step;
      product.C += own * p.c_step;
      kernels_for(T{}).product(product, x0, x1);
    }
  });
}

// Samples unfolded at a time, at most `most` of them.
int64_t samples_at_once(const ConvShape& s, const Unfolding& u, const std::vector<PlaceClass>& classes, int64_t most) {
  int64_t entries = 0;
  for (const PlaceClass& own : classes) entries += u.plain.channels * own.places.size() * own.taps.size();
  return std::max<int64_t>(1, std::min({s.N, kUnfoldedSize / std::max<int64_t>(1, entries), most}));
}

// Calls body(part) for all groups and samples.
template <typename Body>
void for_each_part(const ConvShape& s, int64_t samples, const Body& body) {
  for (int64_t g = 0; g < s.groups; ++g) {
    for (int64_t n0 = 0; n0 < s.N; n0 += samples) body(Part{g, n0, std::min(s.N, n0 + samples)});
  }
}

// Kinds 4 and 5.
template <typename T>
void all_to_weight(const ConvProblem<T>& q, const Unfolding& u) {
  const ConvShape& s = q.s;
  // Sums over places are long: a few zeros at the border cost less than shorter sums.
  const std::vector<PlaceClass> classes = place_classes(u, false);
  int64_t reached = 0;  // each tap belongs to one class of those that only the stride makes
  for (const PlaceClass& own : classes) reached += static_cast<int64_t>(own.taps.size());
  const bool clear = !q.accumulate && reached < s.taps();
  if (clear) std::fill_n(q.out, s.O * s.Cg * s.taps() * s.k, T(0));
  const int64_t blocked = kBlockedRows / std::max<int64_t>(1, u.other.places());
  for_each_part(s, samples_at_once(s, u, classes, blocked), [&](const Part& part) {
    std::vector<ClassProduct<T>> products;
    for (const PlaceClass& own : classes) {
      if (!own.taps.empty()) products.push_back(to_weight(q, u, own, part));
    }
    run_products(q, u, part, q.accumulate || clear || part.n0 > 0, products);
  });
}

// Kinds 1 and 3. A class without taps is written with zeros.
template <typename T>
void all_to_image(const ConvProblem<T>& q, const Unfolding& u) {
  const std::vector<PlaceClass> classes = place_classes(u, true);
  for_each_part(q.s, samples_at_once(q.s, u, classes, q.s.N), [&](const Part& part) {
    std::vector<ClassProduct<T>> products;
    for (const PlaceClass& own : classes) {
      if (!own.taps.empty() || !q.accumulate) products.push_back(to_image(q, u, own, part));
    }
    run_products(q, u, part, q.accumulate, products);
  });
}

// Measured on an AVX-512 EPYC with the layers of small networks and of resnet18, 8 samples, 1 to 100 columns. Unit: a
// pair of vectors of a product with gathered rows; one vector alone costs three quarters of it.
double vectors_cost(int64_t lanes, int64_t vector) {
  const int64_t left = lanes % (2 * vector);
  return static_cast<double>(lanes / (2 * vector)) + (left == 0 ? 0.0 : left > vector ? 1.0 : 0.75);
}

// A folded product copies blocks of lanes, which serve the rows (kinds 0 and 2), the operand of the rows, which serves
// the lanes, and the result, which serves the terms (1 and 3, 4 and 5); lanes that are taps may not fill a vector.
double folded_cost(const ConvShape& s, int64_t kind, int64_t vector) {
  const bool from_output = kind == 2 || kind == 3 || kind == 5;  // channels of the output among the terms, or the lanes
  const int64_t places = s.N * (kind == 1 || kind == 4 ? s.positions() : s.pixels());
  const int64_t taps = s.taps() * (from_output ? s.Og() : s.Cg);
  const auto share = [](double cost, int64_t served) {
    return cost / static_cast<double>(std::max<int64_t>(1, served));
  };
  double copied;
  if (kind == 0 || kind == 2) {
    copied = 1.05 + share(13, kind == 0 ? s.Og() : s.Cg);
  } else if (kind == 1 || kind == 3) {
    copied = 1.3 + share(90, places) + share(11, taps);
  } else {
    const int64_t filled = (taps + vector - 1) / vector * vector;
    copied = (1.45 + share(20, places)) * share(static_cast<double>(filled), taps);
  }
  return copied * static_cast<double>(s.k) / static_cast<double>(2 * vector);
}

enum class Way { kGathered, kFolded, kShifts };

// Kinds 0 and 2. The weight of few places is read once when folded, and the other ways would copy all of it first.
template <typename T>
Way way_with_plain_weight(const ConvShape& s, int64_t kind) {
  constexpr int64_t kFewLanes = 1024, kLargeWeight = 1 << 14, kFewRows = 3;
  constexpr double kCopied = 0.28, kWithoutCopy = 0.92;  // per share of zeros around; against the ways that copy
  const int64_t vector = kernels_for(T{}).vector;
  const bool large = s.Og() * s.Cg * s.taps() >= kLargeWeight;
  if (large && s.N * std::min(s.positions(), s.pixels()) * s.k <= kFewLanes) return Way::kFolded;
  const RowPlan plan = row_plan(s, kind == 2);
  const int64_t height = plan.to.height, width = plan.to.width;
  double least = folded_cost(s, kind, vector) * static_cast<double>(height * width);
  Way best = Way::kFolded;
  const auto consider = [&](Way way, double cost) {
    if (cost < least) best = way, least = cost;
  };
  if (plan.fits(s, kind == 2, vector)) {
    const double around = plan.share_read() - 1;
    consider(Way::kShifts, static_cast<double>(height) * vectors_cost(width * s.k, vector) * (1 + kCopied * around));
  }
  if (s.k >= vector) {
    // Few rows wait for each other unless there are four vectors of columns.
    const double waits = plan.to.channels <= kFewRows && s.k < 4 * vector ? 2 : 1;
    const double inside = plan.share_inside(s, kind == 2) * kWithoutCopy * waits;
    consider(Way::kGathered, static_cast<double>(height * width) * vectors_cost(s.k, vector) * inside);
  }
  return best;
}

template <typename T>
Way way_for(const ConvShape& s, int64_t kind) {
  if (kind == 0 || kind == 2) return way_with_plain_weight<T>(s, kind);
  const int64_t vector = kernels_for(T{}).vector;
  const bool folds = s.k < vector || folded_cost(s, kind, vector) < vectors_cost(s.k, vector);
  return folds ? Way::kFolded : Way::kGathered;
}

void conv_lanes_cpu(Tensor& out,            // [.., k]
                    const Tensor& scalars,  // four axes
                    const Tensor& lanes,    // [.., k]
                    int64_t kind, IntHeaderOnlyArrayRef stride, IntHeaderOnlyArrayRef padding,
                    IntHeaderOnlyArrayRef dilation, int64_t groups, bool accumulate) {
  const ConvShape s = check_conv_lanes(out, scalars, lanes, kind, stride, padding, dilation, groups);
  if (out.numel() == 0) return;
  if (scalars.numel() == 0 || lanes.numel() == 0) {
    if (!accumulate) fill_zeros(out);
    return;
  }
  dispatch_floating(out, [&](auto zero) {
    using T = decltype(zero);
    const ConvProblem<T> q{s, mutable_data<T>(out), data<T>(scalars), data<T>(lanes), accumulate};
    const ConvKernels<T>& kernels = kernels_for(T{});
    const Way way = way_for<T>(s, kind);
    if (way == Way::kFolded) return folded(FoldedCall<T>{s, kernels, q.out, q.scalars, q.lanes, accumulate}, kind);
    if (way == Way::kShifts) {
      return rows_by_shifts(kernels, s, row_plan(s, kind == 2), q.scalars, q.lanes, accumulate, q.out);
    }
    const Side input = input_side(s), output = output_side(s);
    switch (kind) {
      case 0: return with_plain_weight(q, input, output, taps_by_position(s));
      case 1: return all_to_image(q, unfolded_input(s));
      case 2: return with_plain_weight(q, output, input, taps_by_pixel(s));
      case 3: return all_to_image(q, unfolded_output(s));
      case 4: return all_to_weight(q, unfolded_input(s));
      case 5: return all_to_weight(q, unfolded_output(s));
    }
  });
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CPU, m) { m.impl("conv_lanes_", TORCH_BOX(&chaos_ext::conv_lanes_cpu)); }
