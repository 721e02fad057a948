// What a tangent sweep runs on: a tape as a list of nodes on one block of tangent columns, and what becomes of H y.
// Plain structures, without torch, shared by the CPU kernel, the CUDA kernel and its emulation. See tangent_sweep.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/host_device.h"

namespace chaos_ext {

// 32 KB of kernel parameters hold both lists.
constexpr int kMaxNodes = 64;
constexpr int kMaxSlots = 64;
// Partial sums of squares of a launch that updates kMaxSlots slots on the GPU, where H y is given.
constexpr int kUpdateChunks = 32;

enum NodeKind : int {
  kLinearNode,    // z = W a + b
  kScaleNode,     // a = phi(z), elementwise
  kSumNode,       // z = alpha a + beta b
  kNormNode,      // z = gamma xh + beta, tangent_norm.inl
  kSoftmaxNode,   // cross-entropy at its logits, s (diag p - p p^T)
  kDiagonalNode,  // a loss with a diagonal Hessian
  kNodeKinds,
};

// Where a value's tangent d and that of its cotangent e lie in a block's scratch, in rows; -1: constant, no tangent.
struct ValuePlace {
  int64_t d = -1, e = -1;

  CHAOS_EXT_HD_MEMBER bool has() const { return d >= 0; }
};

template <typename T>
struct TangentNode {
  int kind;
  ValuePlace in[2], out;
  bool adds[2];  // to the cotangent's tangent of the input: a later node has written it
  // Linear: R rows of I inputs and O outputs. Softmax: R rows of O classes. Else R numbers.
  int64_t R, I, O;
  int64_t row_w, row_b;  // first rows of W and b in theta, -1: constant
  const T *a, *W, *delta;
  // Linear: a [R, I], W [O, I], delta [R, O]. Scale: a = phi' [R], W = phi'' delta [R] or null. Softmax: a = p [R, O],
  // W = s [R]. Diagonal: a = curvature [R], or null and alpha. Norm: a = xh [I, O, R], W = gamma [C] or null, r [O],
  // delta as xh; alpha is 1, or 0 where mean and variance are constants.
  T alpha, beta;
  // Norm: O groups of I R numbers; gamma is the same for L neighbours. `own`: where dxh lies in the scratch, and behind
  // it mean(xh dx) of each group.
  int64_t C, L, own;
  const T* r;

  CHAOS_EXT_HD_MEMBER int64_t numbers() const { return I * O * R; }
};

template <typename T>
struct TangentProgram {
  int count = 0;
  int64_t scratch_rows = 0;
  TangentNode<T> node[kMaxNodes];
};

template <typename T>
bool has_norms(const TangentProgram<T>& program) {
  return std::any_of(program.node, program.node + program.count, [](const auto& n) { return n.kind == kNormNode; });
}

// Row i of the tangent that a node passes on, of its value or, of a diagonal loss, of the cotangent of its input: from
// the tangents of its inputs, null where constant. Neither linear nor norm nor the softmax.
template <typename T>
CHAOS_EXT_HD T forward_value(const TangentNode<T>& n, int64_t i, const T* first, const T* second) {
  if (n.kind == kSumNode) {
    return (first == nullptr ? T(0) : n.alpha * *first) + (second == nullptr ? T(0) : n.beta * *second);
  }
  return (n.a == nullptr ? n.alpha : n.a[i]) * *first;
}

// Row i of what scale or sum pass back to one of their inputs, with tangent d, from e of their own cotangent.
template <typename T>
CHAOS_EXT_HD T backward_value(const TangentNode<T>& n, int64_t i, int input, T e, const T* d) {
  if (n.kind == kSumNode) return (input == 0 ? n.alpha : n.beta) * e;
  const T value = n.a[i] * e;
  return n.W == nullptr ? value : value + n.W[i] * *d;
}

// h is the slot's part of H y, d its own rows of y, v and u those of its buffers; K = h + decay d.
enum UpdateKind : int {
  kStoreUpdate,     // out = h
  kPlainUpdate,     // d' = d - e1 K
  kMomentumUpdate,  // v' = mu v + c1 K,  d' = d - e1 K - e2 v'
  kAdamUpdate,      // v' = mu v + c1 K,  u' = b2 u + q K,  d' = keep d - A v' + B u'
  kUpdateKinds,
};

CHAOS_EXT_HD constexpr int buffers_of(int kind) { return kind == kAdamUpdate ? 2 : kind == kMomentumUpdate ? 1 : 0; }

template <typename T>
struct UpdateSlot {
  int kind;
  int64_t first, rows;  // of theta
  int64_t buffer[2];    // first rows of v and u
  T decay, mu, c1, e1, e2, b2, keep;
  const T *q, *A, *B;  // [rows], of Adam

  CHAOS_EXT_HD_MEMBER int buffers() const { return buffers_of(kind); }
};

template <typename T>
struct UpdateList {
  int count = 0;
  UpdateSlot<T> slot[kMaxSlots];

  // The slot that starts at a row of theta.
  CHAOS_EXT_HD_MEMBER const UpdateSlot<T>& at(int64_t first) const {
    int i = 0;
    while (slot[i].first != first) ++i;
    return slot[i];
  }
};

// Replaces d, v and u. V: T, or a vector register of T; q, A, B: the slot's at these rows, of Adam.
template <int kKind, typename T, typename C, typename V>
CHAOS_EXT_HD void update(const UpdateSlot<T>& s, const C& q, const C& A, const C& B, const V& h, V& d, V& v, V& u) {
  const V K = h + s.decay * d;
  if constexpr (kKind == kPlainUpdate) {
    d = d - s.e1 * K;
  } else {
    v = s.mu * v + s.c1 * K;
    if constexpr (kKind == kMomentumUpdate) {
      d = d - s.e1 * K - s.e2 * v;
    } else {
      u = s.b2 * u + q * K;
      d = s.keep * d - A * v + B * u;
    }
  }
}

}  // namespace chaos_ext
