// How conv_lanes_ becomes products with gathered rows on the CPU: which rows, in which order.
//
// Kinds 0 and 2 (scalars W): one product a place (output position or input pixel), M the channels that share the
// gathered rows of the other operand; taps that fall outside are left out of the list. Kinds 1, 3, 4, 5, where an image
// is plain: conv_lanes_unfold.h.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "conv_lanes.h"

namespace chaos_ext {

constexpr int64_t kTaskWork = 1 << 20;  // multiply-adds that are worth a thread

// See conv_lanes_kernel.inl.
template <typename T>
struct GatheredProduct {
  const T* A;
  int64_t rows, a_tile, a_outer;
  const int64_t* a_taps;
  const T* B;
  int64_t b_outer;
  const int64_t* b_taps;
  int64_t Ko, Ki;
  T* C;
  const int64_t* c_rows;
  int64_t M;
  bool accumulate;
};

// As a gathered product, with rows of B and C b_row and c_row numbers apart and lanes in whole vectors.
template <typename T>
struct DenseProduct {
  const T* A;
  int64_t rows, a_tile;
  const T* B;
  int64_t b_row;
  T* C;
  int64_t c_row;
  int64_t M, K, lanes;
  bool accumulate;
};

template <typename T>
struct ConvKernels {
  void (*product)(const GatheredProduct<T>&, int64_t x0, int64_t x1);
  void (*dense)(const DenseProduct<T>&);
  int64_t panel, most_rows;  // columns of a task, rows of a register tile
  int64_t vector;            // numbers

  // Rows a tile, so that all tiles of M rows are alike.
  int64_t rows_of(int64_t M) const {
    const int64_t tiles = std::max<int64_t>(1, (M + most_rows - 1) / most_rows);
    return std::max<int64_t>(1, (M + tiles - 1) / tiles);
  }
};

// Memory that is written before it is read.
template <typename T>
std::unique_ptr<T[]> scratch(int64_t size) {
  return std::unique_ptr<T[]>(new T[size]);
}

// Size of a matrix of M rows and K terms in tiles, and where the tile and row of entry m begin.
inline int64_t tiled_size(int64_t M, int64_t K, int64_t rows) { return (M + rows - 1) / rows * rows * K; }
inline int64_t tiled_row(int64_t m, int64_t K, int64_t rows) { return m / rows * rows * K + m % rows; }

// One of the two images of a convolution, X or Z, of one group; and how far its channels are apart in W.
struct Side {
  int64_t channels, height, width;
  int64_t weight_step;

  int64_t places() const { return height * width; }
};

inline Side input_side(const ConvShape& s) { return {s.Cg, s.H, s.W, s.taps()}; }
inline Side output_side(const ConvShape& s) { return {s.Og(), s.OH, s.OW, s.Cg * s.taps()}; }

// One axis of the images, and of the kernel that moves along it.
struct ConvAxis {
  int64_t input, output, kernel, stride, pad, dilation;
};

inline ConvAxis vertical(const ConvShape& s) { return {s.H, s.OH, s.kh, s.sh, s.ph, s.dh}; }
inline ConvAxis horizontal(const ConvShape& s) { return {s.W, s.OW, s.kw, s.sw, s.pw, s.dw}; }

constexpr int64_t kOutside = -1, kOffStride = -2;

// The input coordinate that a tap connects with an output coordinate, or kOutside.
inline int64_t input_of(const ConvAxis& axis, int64_t output, int64_t tap) {
  const int64_t at = output * axis.stride - axis.pad + tap * axis.dilation;
  return at < 0 || at >= axis.input ? kOutside : at;
}

// The output coordinate that a tap connects with an input coordinate, kOutside, or kOffStride where there would be none
// if the output had no end.
inline int64_t output_of(const ConvAxis& axis, int64_t input, int64_t tap) {
  const int64_t up = input + axis.pad - tap * axis.dilation;
  if (up % axis.stride != 0) return kOffStride;
  return up < 0 || up / axis.stride >= axis.output ? kOutside : up / axis.stride;
}

// pixel[p][tap], negative outside
inline std::vector<int64_t> pixel_table(const ConvShape& s) {
  const ConvAxis rows = vertical(s), columns = horizontal(s);
  std::vector<int64_t> table;
  table.reserve(s.positions() * s.taps());
  const auto pixel = [&](int64_t oh, int64_t ow, int64_t i, int64_t j) {
    const int64_t h = input_of(rows, oh, i), w = input_of(columns, ow, j);
    return h < 0 || w < 0 ? kOutside : h * s.W + w;
  };
  for (int64_t oh = 0; oh < s.OH; ++oh) {
    for (int64_t ow = 0; ow < s.OW; ++ow) {
      for (int64_t i = 0; i < s.kh; ++i) {
        for (int64_t j = 0; j < s.kw; ++j) table.push_back(pixel(oh, ow, i, j));
      }
    }
  }
  return table;
}

// The taps that count at each place (an output position, or an input pixel), with where their rows start.
struct TapLists {
  std::vector<int64_t> start, tap, row;  // start[place] .. start[place + 1]

  void begin_place() { start.push_back(static_cast<int64_t>(tap.size())); }
  void end() { begin_place(); }
};

inline TapLists taps_by_position(const ConvShape& s) {
  const std::vector<int64_t> pixels = pixel_table(s);
  TapLists lists;
  for (int64_t p = 0; p < s.positions(); ++p) {
    lists.begin_place();
    for (int64_t tap = 0; tap < s.taps(); ++tap) {
      const int64_t pixel = pixels[p * s.taps() + tap];
      if (pixel < 0) continue;
      lists.tap.push_back(tap);
      lists.row.push_back(pixel * s.k);
    }
  }
  lists.end();
  return lists;
}

inline TapLists taps_by_pixel(const ConvShape& s) {
  const std::vector<int64_t> pixels = pixel_table(s);
  std::vector<std::vector<std::pair<int64_t, int64_t>>> found(s.pixels());
  for (int64_t p = 0; p < s.positions(); ++p) {
    for (int64_t tap = 0; tap < s.taps(); ++tap) {
      const int64_t pixel = pixels[p * s.taps() + tap];
      if (pixel >= 0) found[pixel].push_back({tap, p * s.k});
    }
  }
  TapLists lists;
  for (const auto& own : found) {
    lists.begin_place();
    for (const auto& [tap, row] : own) {
      lists.tap.push_back(tap);
      lists.row.push_back(row);
    }
  }
  lists.end();
  return lists;
}

// W in tiles of the channels `to` that a product makes, from all channels `from`: [g][tile of to][from][tap][to].
template <typename T>
std::unique_ptr<T[]> weight_in_tiles(const ConvShape& s, const T* W, const Side& from, const Side& to, int64_t rows) {
  const int64_t taps = s.taps(), K = from.channels * taps, size = tiled_size(to.channels, K, rows);
  std::unique_ptr<T[]> out = scratch<T>(s.groups * size);
  for (int64_t g = 0; g < s.groups; ++g) {
    const T* group = W + g * s.Og() * s.Cg * taps;
    for (int64_t m = 0; m < to.channels; ++m) {
      for (int64_t c = 0; c < from.channels; ++c) {
        const T* weight = group + m * to.weight_step + c * from.weight_step;
        T* tile = out.get() + g * size + tiled_row(m, K, rows) + c * taps * rows;
        for (int64_t tap = 0; tap < taps; ++tap) tile[tap * rows] = weight[tap];
      }
    }
  }
  return out;
}

}  // namespace chaos_ext
