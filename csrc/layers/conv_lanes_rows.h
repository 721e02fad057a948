// Kinds 0 and 2 of conv_lanes_ with the places of a row and their columns as lanes: where places that follow each other
// read places that follow each other, a tap is a shift of all of them. Products with gathered rows on a copy of the
// lane operand with zeros around; nothing is unfolded.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "conv_lanes_plan.h"

namespace chaos_ext {

// One axis: place p of the result and tap t read place p step + shift[t].
struct RowAxis {
  int64_t places, step;
  std::vector<int64_t> shift;

  int64_t first() const { return *std::min_element(shift.begin(), shift.end()); }
  // Places that `count` of the result read, with those between them.
  int64_t read(int64_t count) const {
    return (count - 1) * step + *std::max_element(shift.begin(), shift.end()) - first() + 1;
  }
};

inline RowAxis to_output(const ConvAxis& axis) {
  RowAxis a{axis.output, axis.stride, {}};
  for (int64_t tap = 0; tap < axis.kernel; ++tap) a.shift.push_back(tap * axis.dilation - axis.pad);
  return a;
}

// For a stride of one.
inline RowAxis to_input(const ConvAxis& axis) {
  RowAxis a{axis.input, 1, {}};
  for (int64_t tap = 0; tap < axis.kernel; ++tap) a.shift.push_back(axis.pad - tap * axis.dilation);
  return a;
}

struct RowPlan {
  Side from, to;
  RowAxis vertical, horizontal;

  // Whether this way is open: a row fills a vector, and the zeros around the image are not much more than the image.
  bool fits(const ConvShape& s, bool to_image, int64_t vector) const {
    return horizontal.step == 1 && (!to_image || s.sh * s.sw == 1) && to.width * s.k >= vector &&
           horizontal.read(to.width) <= 2 * from.width + 16 &&
           vertical.read(to.height) <= 2 * from.height * vertical.step + 16;
  }

  // What is read with zeros around, against the places of the result.
  double share_read() const {
    return static_cast<double>(vertical.read(to.height) * horizontal.read(to.width)) / static_cast<double>(to.places());
  }

  // Of all pairs of a place and a tap, those that lead into the image.
  double share_inside(const ConvShape& s, bool to_image) const {
    const auto along = [&](const ConvAxis& axis) {
      int64_t inside = 0;
      const int64_t places = to_image ? axis.input : axis.output;
      for (int64_t at = 0; at < places; ++at) {
        for (int64_t t = 0; t < axis.kernel; ++t) {
          inside += (to_image ? output_of(axis, at, t) : input_of(axis, at, t)) >= 0;
        }
      }
      return static_cast<double>(inside) / static_cast<double>(std::max<int64_t>(1, places * axis.kernel));
    };
    return along(chaos_ext::vertical(s)) * along(chaos_ext::horizontal(s));
  }
};

// to_image: kind 2.
inline RowPlan row_plan(const ConvShape& s, bool to_image) {
  if (to_image) return {output_side(s), input_side(s), to_input(vertical(s)), to_input(horizontal(s))};
  return {input_side(s), output_side(s), to_output(vertical(s)), to_output(horizontal(s))};
}

constexpr int64_t kBandNumbers = 1 << 16;  // of the copy of a band of rows

// Rows y0 to y0 + count of a plane of `from`, and columns x0 to x0 + width, with zeros outside.
template <typename T>
void copy_with_zeros(const Side& from, int64_t k, const T* plane, int64_t y0, int64_t count, int64_t x0, int64_t width,
                     T* to) {
  const int64_t first = std::clamp<int64_t>(x0, 0, from.width), last = std::clamp<int64_t>(x0 + width, 0, from.width);
  for (int64_t y = y0; y < y0 + count; ++y, to += width * k) {
    if (y < 0 || y >= from.height || first >= last) {
      std::fill_n(to, width * k, T(0));
      continue;
    }
    std::fill_n(to, (first - x0) * k, T(0));
    std::copy_n(plane + (y * from.width + first) * k, (last - first) * k, to + (first - x0) * k);
    std::fill_n(to + (last - x0) * k, (x0 + width - last) * k, T(0));
  }
}

template <typename T>
void rows_by_shifts(const ConvKernels<T>& kernels, const ConvShape& s, const RowPlan& plan, const T* scalars,
                    const T* lanes, bool accumulate, T* out) {
  const int64_t k = s.k, M = plan.to.channels, Ko = plan.from.channels, rows = kernels.rows_of(M);
  const std::unique_ptr<T[]> A = weight_in_tiles(s, scalars, plan.from, plan.to, rows);
  const int64_t width = plan.horizontal.read(plan.to.width), left = plan.horizontal.first(),
                top = plan.vertical.first();
  const int64_t line = Ko * width * k;
  int64_t band = 1;  // rows of the result
  while (band < plan.to.height && (band < 4 || plan.vertical.read(band + 1) * line <= kBandNumbers)) ++band;
  const int64_t bands = (plan.to.height + band - 1) / band, height = plan.vertical.read(band);
  std::vector<int64_t> a_taps, b_taps, c_rows;
  for (const int64_t y : plan.vertical.shift) {
    for (const int64_t x : plan.horizontal.shift) {
      a_taps.push_back(static_cast<int64_t>(a_taps.size()) * rows);
      b_taps.push_back(((y - top) * width + x - left) * k);
    }
  }
  for (int64_t m = 0; m < M; ++m) c_rows.push_back(m * plan.to.places() * k);
  const int64_t work = M * Ko * s.taps() * band * plan.to.width * k;
  const int64_t tasks = s.N * s.groups * bands, grain = std::max<int64_t>(1, kTaskWork / std::max<int64_t>(1, work));
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<T[]> copy = scratch<T>(line * height);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t ng = task / bands, first = task % bands * band, last = std::min(plan.to.height, first + band);
      const int64_t read = plan.vertical.read(last - first);
      for (int64_t c = 0; c < Ko; ++c) {
        const T* plane = lanes + (ng * Ko + c) * plan.from.places() * k;
        copy_with_zeros(plan.from, k, plane, first * plan.vertical.step + top, read, left, width,
                        copy.get() + c * height * width * k);
      }
      GatheredProduct<T> product{};
      product.A = A.get() + ng % s.groups * tiled_size(M, Ko * s.taps(), rows);
      product.rows = rows, product.a_tile = Ko * s.taps() * rows, product.a_outer = s.taps() * rows;
      product.a_taps = a_taps.data(), product.b_taps = b_taps.data(), product.c_rows = c_rows.data();
      product.b_outer = height * width * k, product.Ko = Ko, product.Ki = s.taps();
      product.M = M, product.accumulate = accumulate;
      for (int64_t h = first; h < last; ++h) {
        product.B = copy.get() + (h - first) * plan.vertical.step * width * k;
        product.C = out + (ng * M * plan.to.height + h) * plan.to.width * k;
        kernels.product(product, 0, plan.to.width * k);
      }
    }
  });
}

}  // namespace chaos_ext
