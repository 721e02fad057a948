// conv_lanes_ on the GPU. Formulas: conv_lanes.h. One thread an (entry of out, column), columns along threadIdx.x:
// neighbours read neighbouring columns of the lane operand and broadcast the plain one. Sums run in a fixed order.
#pragma once

#include <cuda_runtime.h>

#include "conv_lanes_shape.h"

namespace chaos_ext {

// Where X, W and Z keep an entry, without the column axis.
CHAOS_EXT_HD int64_t conv_x(const ConvShape& s, int64_t n, int64_t c, int64_t h, int64_t w) {
  return ((n * s.C + c) * s.H + h) * s.W + w;
}
CHAOS_EXT_HD int64_t conv_w(const ConvShape& s, int64_t o, int64_t c, int64_t i, int64_t j) {
  return ((o * s.Cg + c) * s.kh + i) * s.kw + j;
}
CHAOS_EXT_HD int64_t conv_z(const ConvShape& s, int64_t n, int64_t o, int64_t oh, int64_t ow) {
  return ((n * s.O + o) * s.OH + oh) * s.OW + ow;
}

// One entry of Z: over (c, i, j).
template <bool kLanesAreX, typename T>
CHAOS_EXT_HD T conv_at_z(const ConvShape& s, const T* scalars, const T* lanes, int64_t at, int64_t x) {
  const int64_t ow = at % s.OW, oh = at / s.OW % s.OH, o = at / s.positions() % s.O, n = at / s.positions() / s.O;
  const int64_t c0 = o / s.Og() * s.Cg;
  T sum = T(0);
  for (int64_t c = 0; c < s.Cg; ++c) {
    for (int64_t i = 0; i < s.kh; ++i) {
      const int64_t h = oh * s.sh - s.ph + i * s.dh;
      if (h < 0 || h >= s.H) continue;
      for (int64_t j = 0; j < s.kw; ++j) {
        const int64_t w = ow * s.sw - s.pw + j * s.dw;
        if (w < 0 || w >= s.W) continue;
        const int64_t in = conv_x(s, n, c0 + c, h, w), weight = conv_w(s, o, c, i, j);
        sum += kLanesAreX ? scalars[weight] * lanes[in * s.k + x] : scalars[in] * lanes[weight * s.k + x];
      }
    }
  }
  return sum;
}

// One entry of X: over (o, i, j) with h + pad - i dil a multiple of the stride.
template <bool kLanesAreZ, typename T>
CHAOS_EXT_HD T conv_at_x(const ConvShape& s, const T* scalars, const T* lanes, int64_t at, int64_t x) {
  const int64_t w = at % s.W, h = at / s.W % s.H, channel = at / s.pixels() % s.C, n = at / s.pixels() / s.C;
  const int64_t c = channel % s.Cg, o0 = channel / s.Cg * s.Og();
  T sum = T(0);
  for (int64_t o = o0; o < o0 + s.Og(); ++o) {
    for (int64_t i = 0; i < s.kh; ++i) {
      const int64_t up = h + s.ph - i * s.dh, oh = up / s.sh;
      if (up < 0 || up % s.sh != 0 || oh >= s.OH) continue;
      for (int64_t j = 0; j < s.kw; ++j) {
        const int64_t left = w + s.pw - j * s.dw, ow = left / s.sw;
        if (left < 0 || left % s.sw != 0 || ow >= s.OW) continue;
        const int64_t out = conv_z(s, n, o, oh, ow), weight = conv_w(s, o, c, i, j);
        sum += kLanesAreZ ? scalars[weight] * lanes[out * s.k + x] : scalars[out] * lanes[weight * s.k + x];
      }
    }
  }
  return sum;
}

// One entry of W: over (n, oh, ow).
template <bool kLanesAreZ, typename T>
CHAOS_EXT_HD T conv_at_w(const ConvShape& s, const T* scalars, const T* lanes, int64_t at, int64_t x) {
  const int64_t j = at % s.kw, i = at / s.kw % s.kh, c = at / s.taps() % s.Cg, o = at / s.taps() / s.Cg;
  const int64_t channel = o / s.Og() * s.Cg + c;
  T sum = T(0);
  for (int64_t n = 0; n < s.N; ++n) {
    for (int64_t oh = 0; oh < s.OH; ++oh) {
      const int64_t h = oh * s.sh - s.ph + i * s.dh;
      if (h < 0 || h >= s.H) continue;
      for (int64_t ow = 0; ow < s.OW; ++ow) {
        const int64_t w = ow * s.sw - s.pw + j * s.dw;
        if (w < 0 || w >= s.W) continue;
        const int64_t in = conv_x(s, n, channel, h, w), out = conv_z(s, n, o, oh, ow);
        sum += kLanesAreZ ? scalars[in] * lanes[out * s.k + x] : scalars[out] * lanes[in * s.k + x];
      }
    }
  }
  return sum;
}

template <int kKind, typename T>
__global__ void conv_lanes_kernel(const T* scalars,  // plain operand
                                  const T* lanes,    // [.., k]
                                  ConvShape s, int64_t entries, bool accumulate,
                                  T* out) {  // [entries, k]
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t id = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; id < entries * s.k; id += step) {
    const int64_t at = id / s.k, x = id % s.k;
    T sum;
    if constexpr (kKind <= 1) {
      sum = conv_at_z<kKind == 0>(s, scalars, lanes, at, x);
    } else if constexpr (kKind <= 3) {
      sum = conv_at_x<kKind == 2>(s, scalars, lanes, at, x);
    } else {
      sum = conv_at_w<kKind == 4>(s, scalars, lanes, at, x);
    }
    out[id] = accumulate ? out[id] + sum : sum;
  }
}

}  // namespace chaos_ext
