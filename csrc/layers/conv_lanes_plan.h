// How conv_lanes_ becomes products with gathered rows on the CPU: which rows, in which order.
//
// Kinds 0 and 2 (scalars W): one product a position, M the channels that share the gathered rows of the other operand;
// taps that fall outside are left out of the list. Kinds 1, 3, 4, 5: one product an output channel (1, 4) or input
// channel (3, 5), with the plain operand unfolded once into a matrix that all of them share, zero where outside.
#pragma once

#include <algorithm>
#include <vector>

#include "conv_lanes.h"

namespace chaos_ext {

// See conv_lanes_kernel.inl.
template <typename T>
struct GatheredProduct {
  const T* A;
  int64_t lda, a_outer;
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
  int64_t panel;
};

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

// W [O, Cg, taps] with the channel that a product makes last: for kind 0 [g][c][tap][o], for kind 2 [g][o][tap][c].
template <typename T>
std::vector<T> weight_by_tap(const ConvShape& s, const T* W, bool output_last) {
  const int64_t Og = s.Og(), taps = s.taps();
  std::vector<T> out(s.O * s.Cg * taps);
  for (int64_t o = 0; o < s.O; ++o) {
    const int64_t g = o / Og, local = o % Og;
    for (int64_t c = 0; c < s.Cg; ++c) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t to =
            output_last ? ((g * s.Cg + c) * taps + tap) * Og + local : ((g * Og + local) * taps + tap) * s.Cg + c;
        out[to] = W[(o * s.Cg + c) * taps + tap];
      }
    }
  }
  return out;
}

// The plain operand of samples n0 to n1 and one group, unfolded. rows_first: [(channel, tap)][(n, place)], else its
// transpose. X is unfolded over output positions (places), Z over input pixels.
template <typename T>
std::vector<T> unfolded(const ConvShape& s, const T* plain, bool of_input, int64_t group, int64_t n0, int64_t n1,
                        bool rows_first) {
  const int64_t channels = of_input ? s.Cg : s.Og(), all = channels * s.groups, taps = s.taps();
  const int64_t places = of_input ? s.positions() : s.pixels(), source = of_input ? s.pixels() : s.positions();
  const int64_t width = (n1 - n0) * places, height = channels * taps;
  std::vector<T> out(width * height, T(0));
  const std::vector<int64_t> pixels = pixel_table(s);
  for (int64_t n = n0; n < n1; ++n) {
    for (int64_t c = 0; c < channels; ++c) {
      const T* from = plain + (n * all + group * channels + c) * source;
      for (int64_t p = 0; p < s.positions(); ++p) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          const int64_t pixel = pixels[p * taps + tap];
          if (pixel < 0) continue;
          const int64_t row = c * taps + tap, column = (n - n0) * places + (of_input ? p : pixel);
          out[rows_first ? row * width + column : column * height + row] = from[of_input ? pixel : p];
        }
      }
    }
  }
  return out;
}

}  // namespace chaos_ext
