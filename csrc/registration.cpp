// The table of contents of chaos_ext's native code: every operator schema, in pipeline order.
//
// Index legend: N batch, C classes, k tangent columns, O/I output/input features of a layer, P parameters,
// q rank of a factorised projection; _s and _t are the layers of a Hessian block's rows and columns.
// (a!) marks a tensor that is written in place. CPU kernels are in <op>_cpu.cpp (library _C), CUDA kernels in
// <op>.cuh with launchers in <op>_cuda.cu (library _C_cuda), formulas in the headers that both share.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(chaos_ext, m) {
  // common/: advice on the memory of a large fresh result, before it is first touched.
  m.def("use_huge_pages_(Tensor(a!) t) -> ()");

  // layers/: value, first and second derivative of an activation in one pass.
  m.def("activation(Tensor z, int kind, float alpha, float beta) -> (Tensor a, Tensor d1, Tensor d2)");
  // One of the six products of a convolution whose result and one factor carry k tangent columns.
  m.def(
      "conv_lanes_(Tensor(a!) out, Tensor scalars, Tensor lanes, int kind, int[] stride, int[] padding, "
      "int[] dilation, int groups, bool accumulate) -> ()");
  // The tangents of a normalisation, and of its adjoint, under k columns at once.
  m.def(
      "norm_tangent_(Tensor(a!) out, Tensor xh, Tensor r, Tensor? d, Tensor? gamma, Tensor? dgamma, Tensor? dbeta) "
      "-> ()");
  m.def(
      "norm_tangent_backward_(Tensor(a!) out, Tensor(b!) dweight, Tensor(c!) dbias, Tensor xh, Tensor r, Tensor delta, "
      "Tensor? d, Tensor? ddelta, Tensor? gamma, Tensor? dgamma) -> ()");

  // losses/: value, gradient and curvature with respect to the logits.
  m.def("cross_entropy(Tensor z, Tensor t) -> (Tensor loss, Tensor delta, Tensor p)");
  m.def("cross_entropy_labels(Tensor z, Tensor y, float own, float others) -> (Tensor loss, Tensor delta, Tensor p)");
  m.def("cross_entropy_tangent(Tensor p, Tensor s, Tensor dz) -> Tensor");
  m.def(
      "bce_with_logits(Tensor z, Tensor y, Tensor w, Tensor pw, float scale) -> "
      "(Tensor loss, Tensor delta, Tensor curvature)");
  m.def("mse(Tensor z, Tensor y, float scale) -> (Tensor loss, Tensor delta)");

  // hessian/: one layer pair's block, written into the dense matrix together with its transpose.
  m.def(
      "hessian_block_(Tensor(a!) H, Tensor a_s, Tensor? K, Tensor? a_t, Tensor? delta_t, Tensor? J, "
      "int row_w, int row_b, int col_w, int col_b, bool same) -> ()");

  // spectrum/: S = Q T Q^T, T = R diag(values) R^T, and U = Q R (columns in `order`) applied to vectors.
  m.def("tridiagonalise(Tensor S) -> (Tensor reflectors, Tensor d, Tensor e)");
  m.def(
      "tridiagonal_ql(Tensor d, Tensor e, float tol) -> "
      "(Tensor values, Tensor order, Tensor sweeps, Tensor rotations)");
  m.def(
      "tridiagonal_apply(Tensor reflectors, Tensor order, Tensor sweeps, Tensor rotations, Tensor x, bool transpose) "
      "-> Tensor");

  // dynamics/: H Y by a sweep of the tape's nodes, and the tangent map of an optimizer's step on Y in place.
  m.def("tangent_product(Tensor Y, Tensor[] operands, int[] values, int[] nodes, float[] factors) -> Tensor");
  m.def(
      "tangent_update_(Tensor(a!) Y, Tensor? HY, Tensor[] operands, int[] values, int[] nodes, float[] factors, "
      "Tensor[] vectors, int[] slots, float[] coefficients) -> Tensor");

  // dynamics/: one optimizer step along a gradient whose projection never goes to memory.
  m.def(
      "projected_sgd_(Tensor(a!) param, Tensor grad, Tensor L, Tensor R, Tensor(b!)? buf, bool first, float lr, "
      "float momentum, float dampening, float weight_decay, bool nesterov, bool maximize) -> ()");
}
