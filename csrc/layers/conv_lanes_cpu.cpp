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

constexpr int64_t kTaskWork = 1 << 16;      // multiply-adds that are worth a thread
constexpr int64_t kUnfoldedSize = 1 << 22;  // numbers of an unfolded operand at a time
constexpr int64_t kBlockedRows = 512;       // gathered rows of a panel that stay in the L2 cache

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

int64_t work_of(const ConvShape& s) { return s.N * s.O * s.positions() * s.Cg * s.taps() * s.k; }

// Kinds 0 (forward: out Z, lanes X) and 2 (out X, lanes Z): the weight is plain.
template <typename T>
void with_plain_weight(const ConvProblem<T>& q, bool forward) {
  const ConvShape& s = q.s;
  const int64_t Og = s.Og(), k = s.k;
  const int64_t M = forward ? Og : s.Cg, Ko = forward ? s.Cg : Og;
  const int64_t out_places = forward ? s.positions() : s.pixels(), lane_places = forward ? s.pixels() : s.positions();
  const std::vector<T> A = weight_by_tap(s, q.scalars, forward);
  const TapLists lists = forward ? taps_by_position(s) : taps_by_pixel(s);
  std::vector<int64_t> c_rows(M);
  for (int64_t m = 0; m < M; ++m) c_rows[m] = m * out_places * k;
  for_each_panel<T>(s.N * s.groups, k, work_of(s), [&](int64_t ng, int64_t x0, int64_t x1) {
    const int64_t g = ng % s.groups;
    for (int64_t place = 0; place < out_places; ++place) {
      const int64_t from = lists.start[place], to = lists.start[place + 1];
      const GatheredProduct<T> product{A.data() + g * Ko * s.taps() * M,
                                       M,
                                       s.taps(),
                                       lists.tap.data() + from,
                                       q.lanes + ng * Ko * lane_places * k,
                                       lane_places * k,
                                       lists.row.data() + from,
                                       Ko,
                                       to - from,
                                       q.out + (ng * M * out_places + place) * k,
                                       c_rows.data(),
                                       M,
                                       q.accumulate};
      kernels_for(T{}).product(product, x0, x1);
    }
  });
}

// The rows of a lane operand that belong to one channel: [outer][inner] at base + q outer + taps[t].
struct ChannelRows {
  std::vector<int64_t> taps;
  int64_t outer_count, outer, channel;
};

std::vector<int64_t> multiples(int64_t count, int64_t step) {
  std::vector<int64_t> out(count);
  for (int64_t i = 0; i < count; ++i) out[i] = i * step;
  return out;
}

// Kinds 1, 3, 4, 5: the input (of_input) or the cotangent is plain and unfolded; to_weight: out is the weight.
template <typename T>
void with_unfolded(const ConvProblem<T>& q, bool of_input, bool to_weight) {
  const ConvShape& s = q.s;
  const int64_t k = s.k, taps = s.taps(), Og = s.Og();
  const int64_t inner_channels = of_input ? s.Cg : Og, J = inner_channels * taps;  // (channel, tap) of the weight
  const int64_t places = of_input ? s.positions() : s.pixels();
  const int64_t own = of_input ? Og : s.Cg;  // products of one group
  const int64_t image = places * k, sample = own * s.groups * image;
  // Rows of the weight that belong to one product: of output channel o all (c, tap), of input channel c all (o, tap).
  std::vector<int64_t> weight_rows(J);
  for (int64_t j = 0; j < J; ++j) {
    weight_rows[j] = of_input ? j * k : (j / taps * s.Cg * taps + j % taps) * k;
  }
  const int64_t samples = std::max<int64_t>(1, std::min(kUnfoldedSize / std::max<int64_t>(1, J * places),
                                                        to_weight ? kBlockedRows / std::max<int64_t>(1, places) : s.N));
  const std::vector<int64_t> places_taps = multiples(places, 1), place_rows = multiples(places, k);
  const std::vector<int64_t> j_taps = multiples(J, 1);
  for (int64_t g = 0; g < s.groups; ++g) {
    for (int64_t n0 = 0; n0 < s.N; n0 += samples) {
      const int64_t n1 = std::min(s.N, n0 + samples), count = (n1 - n0) * places;
      const std::vector<T> A = unfolded(s, q.scalars, of_input, g, n0, n1, !to_weight);
      std::vector<int64_t> c_rows(to_weight ? 0 : count);
      for (int64_t m = 0; m < static_cast<int64_t>(c_rows.size()); ++m) {
        c_rows[m] = m / places * sample + m % places * k;
      }
      for_each_panel<T>(own, k, work_of(s) / s.groups * (n1 - n0) / s.N, [&](int64_t channel, int64_t x0, int64_t x1) {
        const int64_t weight = of_input ? (g * Og + channel) * s.Cg * taps * k : (g * Og * s.Cg + channel) * taps * k;
        const int64_t images = n0 * sample + (g * own + channel) * image;
        const GatheredProduct<T> product =
            to_weight ? GatheredProduct<T>{A.data(),
                                           J,
                                           places,
                                           places_taps.data(),
                                           q.lanes + images,
                                           sample,
                                           place_rows.data(),
                                           n1 - n0,
                                           places,
                                           q.out + weight,
                                           weight_rows.data(),
                                           J,
                                           q.accumulate || n0 > 0}
                      : GatheredProduct<T>{A.data(),           count, 0, j_taps.data(),  q.lanes + weight, 0,
                                           weight_rows.data(), 1,     J, q.out + images, c_rows.data(),    count,
                                           q.accumulate};
        kernels_for(T{}).product(product, x0, x1);
      });
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
