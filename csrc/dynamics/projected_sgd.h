// projected_sgd_: one step of torch's SGD recurrence along d = g - L R, in place and in one pass.
//
//   d = grad - L R          L [O, q], R [q, I]; the parameter is viewed as [O, I], q may be 0
//   d = -d                  if maximize
//   d += weight_decay theta
//   with buf:  buf = d if first, else momentum buf + (1 - dampening) d
//              d = d + momentum buf if nesterov, else buf
//   theta -= lr d
//
// Cost: 2 q flops a parameter; theta, grad, buf are read and theta, buf written once. What the fusion saves: the
// product L R never goes to memory, and torch's loop over the same formulas would make up to seven passes.
#pragma once

#include <optional>

#include "../common/arguments.h"
#include "projected_sgd_math.h"

namespace chaos_ext {

// Checks everything; the parameter is [O, I] with O = L.size(0), I = R.size(1).
inline void check_projected_sgd(const Tensor& param,               // any shape, O I elements
                                const Tensor& grad,                // as param
                                const Tensor& L,                   // [O, q]
                                const Tensor& R,                   // [q, I]
                                const std::optional<Tensor>& buf,  // as param
                                const SgdOptions<double>& options) {
  const char* op = "projected_sgd_";
  check_arguments(op, {writes("param", param), writes("buf", buf), reads("grad", grad), reads("L", L), reads("R", R)});
  check_floating(op, "param", param);
  check_contiguous(op, "param", param);
  check_like(op, "grad", grad, "param", param);
  check_same_shape(op, "grad", grad, "param", param);
  check_contiguous(op, "grad", grad);
  check_dim(op, "L", L, 2);
  check_dim(op, "R", R, 2);
  check_operand(op, "L", L, "param", param, {L.size(0), L.size(1)});
  check_operand(op, "R", R, "param", param, {L.size(1), R.size(1)});
  CE_EXPECT(product_of({L.size(0), R.size(1)}) == param.numel(), op,
            ": expected L [O, q] and R [q, I] with O I = ", param.numel(), ", got ", shape_string(L.sizes()), " and ",
            shape_string(R.sizes()));
  CE_EXPECT(buf.has_value() || (options.momentum == 0 && !options.nesterov), op,
            ": expected buf with momentum or nesterov, got none with momentum ", options.momentum);
  if (!buf) return;
  check_like(op, "buf", *buf, "param", param);
  check_same_shape(op, "buf", *buf, "param", param);
  check_contiguous(op, "buf", *buf);
}

}  // namespace chaos_ext
