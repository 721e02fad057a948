// Tangent sweeps over the columns of Y [S, k], natively: H Y, and Y <- J Y of an optimizer's step in place.
//
//   tangent_product(Y, ...)        H Y [P, k]
//   tangent_update_(Y, HY, ...)    Y <- J Y by the formulas of tangent_program.h; H Y is given, or swept along the way.
//                                  Returns partial sums of squares of the new columns [c, k]: c = 1, but on the GPU
//                                  with H Y given kUpdateChunks for every kMaxSlots slots.
//                                  Rows of Y that no slot names stay as they are, and are not in the sums.
//
// The nodes are a tape in topological order, the loss last. Forward, for z = W a + b with tangent (V, c):
//   dz = V a + W da + c,   da = phi'(z) dz,   at the loss d(delta) = (d2 loss/dz2) dz
// and back, before V is overwritten:
//   d(delta_in) = W^T d(delta) + V^T delta,   d(delta_z) = phi'(z) d(delta_a) + phi''(z) delta_a dz,
//   (H y)_W = sum_r d(delta_r) a_r^T + delta_r da_r^T,   (H y)_b = sum_r d(delta_r).
// Normalisation: tangent_norm.inl.
//
// Index legend: R rows (samples times positions), I/O features, S rows of state, P of theta, k columns.
// Cost: 4 R |W| flops a column for a layer whose input carries no tangent, else 12. A column depends on no other one:
// a block of columns is swept as a whole, its tangents in cache (CPU) or shared memory (CUDA), so that Y and its
// buffers are read once and written once. What the fusion saves: H Y never goes to memory, nor do the tangents in
// between. Parallel over blocks of columns; the sums of a column have one order, whatever the number of threads or
// blocks.
#pragma once

#include "tangent_tensors.h"
