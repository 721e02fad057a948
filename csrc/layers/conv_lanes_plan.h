// How conv_lanes_ becomes products with gathered rows on the CPU: which rows, in which order.
//
// Kinds 0 and 2 (scalars W): one product a place (output position or input pixel), M the channels that share the
// gathered rows of the other operand; taps that fall outside are left out of the list. Kinds 1, 3, 4, 5: one product an
// output channel (1, 4) or input channel (3, 5) and class of places, with the plain operand unfolded once into a matrix
// that all of them share. A class is the places that the same taps reach: with a stride, an input pixel is reached by
// few of them, and at the border of the image by fewer.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "conv_lanes.h"

namespace chaos_ext {

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

template <typename T>
struct ConvKernels {
  void (*product)(const GatheredProduct<T>&, int64_t x0, int64_t x1);
  int64_t panel, most_rows;  // columns of a task, rows of a register tile

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

// The input pixel of a tap at an output position, or -1 outside.
inline int64_t pixel_of(const ConvShape& s, int64_t oh, int64_t ow, int64_t i, int64_t j) {
  const int64_t h = oh * s.sh - s.ph + i * s.dh, w = ow * s.sw - s.pw + j * s.dw;
  return h < 0 || h >= s.H || w < 0 || w >= s.W ? -1 : h * s.W + w;
}

// pixel[p][tap]
inline std::vector<int64_t> pixel_table(const ConvShape& s) {
  std::vector<int64_t> table;
  table.reserve(s.positions() * s.taps());
  for (int64_t oh = 0; oh < s.OH; ++oh) {
    for (int64_t ow = 0; ow < s.OW; ++ow) {
      for (int64_t i = 0; i < s.kh; ++i) {
        for (int64_t j = 0; j < s.kw; ++j) table.push_back(pixel_of(s, oh, ow, i, j));
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

// W [O, Cg, taps] in tiles of the channel that a product makes: for kind 0 [g][tile of o][c][tap][o], for kind 2
// [g][tile of c][o][tap][c].
template <typename T>
std::unique_ptr<T[]> weight_in_tiles(const ConvShape& s, const T* W, bool output_last, int64_t rows) {
  const int64_t Og = s.Og(), taps = s.taps(), M = output_last ? Og : s.Cg, K = (output_last ? s.Cg : Og) * taps;
  std::unique_ptr<T[]> out = scratch<T>(s.groups * tiled_size(M, K, rows));
  for (int64_t o = 0; o < s.O; ++o) {
    const int64_t local = o % Og;
    T* group = out.get() + o / Og * tiled_size(M, K, rows);
    for (int64_t c = 0; c < s.Cg; ++c) {
      T* to = group + tiled_row(output_last ? local : c, K, rows) + (output_last ? c : local) * taps * rows;
      for (int64_t tap = 0; tap < taps; ++tap) to[tap * rows] = W[(o * s.Cg + c) * taps + tap];
    }
  }
  return out;
}

// The places that the same taps reach. source[place][tap]: what the plain operand has there, -1 for a zero.
struct PlaceClass {
  std::vector<int64_t> taps, places, source;
};

// One axis: the classes of its coordinates by the taps that count there, and where a tap leads.
struct AxisClasses {
  std::vector<std::vector<int64_t>> taps;  // of each class
  std::vector<int64_t> of;                 // class of each coordinate
  int64_t places, source, stride, pad, dilation;
  bool of_input;

  // places: output coordinates (of_input) or input coordinates; source: those of the plain operand.
  AxisClasses(int64_t places, int64_t source, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation,
              bool of_input, bool exact)
      : places(places), source(source), stride(stride), pad(pad), dilation(dilation), of_input(of_input) {
    for (int64_t at = 0; at < places; ++at) {
      std::vector<int64_t> own;
      for (int64_t tap = 0; tap < kernel; ++tap) {
        if (lead(at, tap) >= 0 || (!exact && on_stride(at, tap))) own.push_back(tap);
      }
      const auto known = std::find(taps.begin(), taps.end(), own);
      of.push_back(known - taps.begin());
      if (known == taps.end()) taps.push_back(own);
    }
  }

  // Whether the tap could reach the coordinate if the output had no end.
  bool on_stride(int64_t at, int64_t tap) const { return of_input || (at + pad - tap * dilation) % stride == 0; }

  // The coordinate of the plain operand that the tap connects with this place, -1 outside.
  int64_t lead(int64_t at, int64_t tap) const {
    if (!on_stride(at, tap)) return -1;
    const int64_t up = at + pad - tap * dilation;
    const int64_t to = of_input ? at * stride - pad + tap * dilation : up / stride;
    return to < 0 || to >= source || (!of_input && up < 0) ? -1 : to;
  }
};

// Classes of output positions (of_input: the plain operand is X) or of input pixels (it is Z). exact: taps outside are
// left out; otherwise only those that the stride excludes, so that classes are few.
inline std::vector<PlaceClass> place_classes(const ConvShape& s, bool of_input, bool exact) {
  const int64_t height = of_input ? s.OH : s.H, width = of_input ? s.OW : s.W;
  const int64_t from_height = of_input ? s.H : s.OH, from_width = of_input ? s.W : s.OW;
  const AxisClasses rows(height, from_height, s.kh, s.sh, s.ph, s.dh, of_input, exact);
  const AxisClasses columns(width, from_width, s.kw, s.sw, s.pw, s.dw, of_input, exact);
  std::vector<PlaceClass> classes(rows.taps.size() * columns.taps.size());
  for (size_t a = 0; a < rows.taps.size(); ++a) {
    for (size_t b = 0; b < columns.taps.size(); ++b) {
      for (const int64_t i : rows.taps[a]) {
        for (const int64_t j : columns.taps[b]) classes[a * columns.taps.size() + b].taps.push_back(i * s.kw + j);
      }
    }
  }
  for (int64_t h = 0; h < height; ++h) {
    for (int64_t w = 0; w < width; ++w) {
      PlaceClass& own = classes[rows.of[h] * columns.taps.size() + columns.of[w]];
      own.places.push_back(h * width + w);
      for (const int64_t tap : own.taps) {
        const int64_t y = rows.lead(h, tap / s.kw), x = columns.lead(w, tap % s.kw);
        own.source.push_back(y < 0 || x < 0 ? -1 : y * from_width + x);
      }
    }
  }
  return classes;
}

// The plain operand of samples n0 to n1, one group and one class, in tiles: rows (n, place) and terms (channel, tap),
// or with taps_are_rows the other way round.
template <typename T>
std::unique_ptr<T[]> unfolded(const ConvShape& s, const T* plain, bool of_input, int64_t group, int64_t n0, int64_t n1,
                              const PlaceClass& own, bool taps_are_rows, int64_t rows) {
  const int64_t channels = of_input ? s.Cg : s.Og(), all = channels * s.groups;
  const int64_t size = of_input ? s.pixels() : s.positions();
  const int64_t taps = own.taps.size(), places = own.places.size();
  const int64_t J = channels * taps, L = (n1 - n0) * places, M = taps_are_rows ? J : L, K = taps_are_rows ? L : J;
  std::unique_ptr<T[]> out = scratch<T>(tiled_size(M, K, rows));
  for (int64_t n = n0; n < n1; ++n) {
    for (int64_t c = 0; c < channels; ++c) {
      const T* from = plain + (n * all + group * channels + c) * size;
      for (int64_t a = 0; a < (taps_are_rows ? taps : places); ++a) {
        const int64_t at = (n - n0) * places, j = c * taps;  // of the first place and the first tap
        T* to =
            out.get() + (taps_are_rows ? tiled_row(j + a, K, rows) + at * rows : tiled_row(at + a, K, rows) + j * rows);
        const int64_t* source = own.source.data() + (taps_are_rows ? a : a * taps);
        const int64_t step = taps_are_rows ? taps : 1, count = taps_are_rows ? places : taps;
        for (int64_t b = 0; b < count; ++b) {
          const int64_t i = source[b * step];
          to[b * rows] = i < 0 ? T(0) : from[i];
        }
      }
    }
  }
  return out;
}

}  // namespace chaos_ext
