// The sizes of a convolution, shared by CPU and CUDA; see conv_lanes.h for the whole.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace chaos_ext {

// Sizes and movement of the direct convolution.
struct ConvShape {
  int64_t N, C, H, W, O, Cg, kh, kw, OH, OW;
  int64_t sh, sw, ph, pw, dh, dw, groups, k;

  CHAOS_EXT_HD_MEMBER int64_t Og() const { return O / groups; }
  CHAOS_EXT_HD_MEMBER int64_t taps() const { return kh * kw; }
  CHAOS_EXT_HD_MEMBER int64_t positions() const { return OH * OW; }
  CHAOS_EXT_HD_MEMBER int64_t pixels() const { return H * W; }
};

}  // namespace chaos_ext
