// The six products of a convolution in which two operands carry k tangent columns ("lanes", the last axis).
//
// A convolution relates input X [N, C, H, W], weight W [O, C/g, kh, kw] and output Z [N, O, OH, OW] through the tuples
// (n, o, c, i, j, oh, ow) with h = oh stride_h - pad_h + i dil_h (w alike), those outside the input dropped, c counted
// within the group of o. With one plain operand ("scalars") and two with lanes,
//
//     out[a, :] (+)= sum over tuples scalars[b] lanes[l, :].
//
//   kind  out  lanes  scalars    in the sweep
//   0     Z    X      W          dz = W * da
//   1     Z    W      X          dz = V * a
//   2     X    Z      W          d(delta_in) = W^T d(delta)
//   3     X    W      Z          d(delta_in) = V^T delta
//   4     W    Z      X          H v = d(delta) a^T
//   5     W    X      Z          H v = delta da^T
//
// Index legend: N batch, C/O input/output channels, g groups, P positions OH OW, J = C/g kh kw, k columns.
// Cost: 2 N O P J k operations, less at the border; out is written once, nothing is unfolded along the columns.
#pragma once

#include <utility>

#include "../common/arguments.h"
#include "conv_lanes_shape.h"

namespace chaos_ext {

enum ConvOperand { kConvX, kConvW, kConvZ };

struct ConvRoles {
  ConvOperand out, lanes, scalars;
};

inline ConvRoles conv_roles(int64_t kind) {
  constexpr ConvRoles kRoles[] = {{kConvZ, kConvX, kConvW}, {kConvZ, kConvW, kConvX}, {kConvX, kConvZ, kConvW},
                                  {kConvX, kConvW, kConvZ}, {kConvW, kConvZ, kConvX}, {kConvW, kConvX, kConvZ}};
  return kRoles[kind];
}

using torch::headeronly::IntHeaderOnlyArrayRef;

// Of movements and of the images that are moved over: products of two are far from the end of int64.
constexpr int64_t kFarthest = (int64_t{1} << 30) - 1;
// Pairs of an output position and a tap that the CPU keeps a table of.
constexpr int64_t kMostPairs = int64_t{1} << 28;

inline void check_pair(const char* arg, const IntHeaderOnlyArrayRef& value, int64_t least) {
  const auto good = [&](int64_t number) { return number >= least && number <= kFarthest; };
  CE_EXPECT(value.size() == 2 && good(value[0]) && good(value[1]), "conv_lanes_: expected ", arg,
            " of two numbers >= ", least, " and < 2^30, got ", shape_string(value));
}

// Where nothing is empty; else nothing is moved over.
inline void check_extent(const ConvShape& s) {
  const char* op = "conv_lanes_";
  for (const int64_t size : {s.H, s.W, s.kh, s.kw, s.OH, s.OW}) {
    CE_EXPECT(size <= kFarthest, op, ": expected images and kernels of sizes < 2^30, got ", size);
  }
  CE_EXPECT(product_of({s.OH, s.OW, s.kh, s.kw}) <= kMostPairs, op,
            ": expected at most 2^28 pairs of an output position and a tap, got ", s.OH, " x ", s.OW, " positions and ",
            s.kh, " x ", s.kw, " taps");
  CE_EXPECT(product_of({s.N, s.O, s.positions(), s.Cg, s.taps(), s.k}) < kTooMany, op,
            ": expected fewer than 2^63 products, got ", s.N, " samples of ", s.positions(), " positions, ", s.O,
            " by ", s.Cg, " channels, ", s.taps(), " taps and ", s.k, " columns");
}

// One operand's first four sizes.
inline const Tensor& conv_operand(ConvOperand which, const ConvRoles& roles, const Tensor& out, const Tensor& lanes,
                                  const Tensor& scalars) {
  return roles.out == which ? out : roles.lanes == which ? lanes : scalars;
}

inline ConvShape check_conv_lanes(const Tensor& out,      // [.., k], role of the kind
                                  const Tensor& scalars,  // four axes
                                  const Tensor& lanes,    // [.., k]
                                  int64_t kind, const IntHeaderOnlyArrayRef& stride,
                                  const IntHeaderOnlyArrayRef& padding, const IntHeaderOnlyArrayRef& dilation,
                                  int64_t groups) {
  const char* op = "conv_lanes_";
  check_arguments(op, {writes("out", out), reads("scalars", scalars), reads("lanes", lanes)});
  CE_EXPECT(kind >= 0 && kind < 6, op, ": expected kind in 0..5, got ", kind);
  check_floating(op, "out", out);
  check_dim(op, "out", out, 5);
  check_dim(op, "scalars", scalars, 4);
  check_dim(op, "lanes", lanes, 5);
  for (const auto& [arg, t] : {std::pair<const char*, const Tensor&>{"scalars", scalars}, {"lanes", lanes}}) {
    check_like(op, arg, t, "out", out);
    check_contiguous(op, arg, t);
  }
  check_contiguous(op, "out", out);
  CE_EXPECT(lanes.size(4) == out.size(4), op, ": expected lanes with ", out.size(4), " columns like out, got ",
            lanes.size(4));
  check_pair("stride", stride, 1);
  check_pair("padding", padding, 0);
  check_pair("dilation", dilation, 1);
  const ConvRoles roles = conv_roles(kind);
  const Tensor& X = conv_operand(kConvX, roles, out, lanes, scalars);
  const Tensor& W = conv_operand(kConvW, roles, out, lanes, scalars);
  const Tensor& Z = conv_operand(kConvZ, roles, out, lanes, scalars);
  CE_EXPECT(groups >= 1 && W.size(0) % groups == 0 && X.size(1) == product_of({W.size(1), groups}), op,
            ": expected groups that divide ", W.size(0), " output channels and ", X.size(1), " input channels into ",
            W.size(1), ", got ", groups);
  CE_EXPECT(Z.size(0) == X.size(0) && Z.size(1) == W.size(0), op, ": expected an output of ", X.size(0),
            " samples and ", W.size(0), " channels, got ", Z.size(0), " and ", Z.size(1));
  const ConvShape s{X.size(0),  X.size(1),  X.size(2),   X.size(3),   W.size(0), W.size(1),
                    W.size(2),  W.size(3),  Z.size(2),   Z.size(3),   stride[0], stride[1],
                    padding[0], padding[1], dilation[0], dilation[1], groups,    out.size(4)};
  if (out.numel() > 0 && scalars.numel() > 0 && lanes.numel() > 0) check_extent(s);
  return s;
}

}  // namespace chaos_ext
