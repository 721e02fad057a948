// The list arguments of tangent_product and tangent_update_, checked, as the structures that the kernels take.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/checks.h"
#include "tangent_program.h"

namespace chaos_ext {

// The list arguments of both operators.
struct SweepLists {
  const std::vector<Tensor>& operands;  // of the nodes, in their order
  const std::vector<int64_t>& values;   // rows of each value; 0: without a tangent
  const std::vector<int64_t>& nodes;    // kNodeFields a node: kind, in, in2, out, row_w, row_b
  const std::vector<double>& factors;   // two a node: alpha, beta
};

struct UpdateLists {
  const std::vector<Tensor>& vectors;       // q, A, B of the Adam slots, in their order
  const std::vector<int64_t>& slots;        // kSlotFields a slot: kind, first, rows, buffer, buffer
  const std::vector<double>& coefficients;  // kSlotNumbers a slot: decay, mu, c1, e1, e2, b2, keep
};

constexpr int64_t kNodeFields = 6, kSlotFields = 5, kSlotNumbers = 7;

// Y or HY: rows of any stride, neighbouring columns.
inline void check_columns(const char* op, const char* arg, const Tensor& Y) {
  check_dim(op, arg, Y, 2);
  const int64_t rows = Y.size(0), k = Y.size(1);
  STD_TORCH_CHECK(k <= 1 || (Y.stride(1) == 1 && (rows <= 1 || Y.stride(0) >= k)), op, ": expected ", arg,
                  " with contiguous rows (strides [>= k, 1]), got strides ", shape_string(Y.strides()));
}

inline int64_t row_stride(const Tensor& Y) { return Y.size(0) > 1 ? Y.stride(0) : Y.size(1); }

// Turns the lists into a program, checking all of them.
template <typename T>
class ProgramBuilder {
 public:
  ProgramBuilder(const char* op, const Tensor& Y, const SweepLists& lists) : op_(op), Y_(Y), lists_(lists) {
    const auto count = static_cast<int64_t>(lists.nodes.size()) / kNodeFields;
    STD_TORCH_CHECK(count <= kMaxNodes && static_cast<int64_t>(lists.nodes.size()) == count * kNodeFields &&
                        static_cast<int64_t>(lists.factors.size()) == 2 * count,
                    op, ": expected nodes of ", kNodeFields, " numbers and 2 factors each, at most ", kMaxNodes,
                    ", got ", lists.nodes.size(), " and ", lists.factors.size());
    for (const int64_t rows : lists.values) {
      STD_TORCH_CHECK(rows >= 0, op, ": expected values of at least 0 rows, got ", rows);
      ValuePlace place;
      if (rows > 0) place = {program_.scratch_rows, program_.scratch_rows + rows};
      program_.scratch_rows += 2 * rows;
      places_.push_back(place);
    }
    for (int64_t n = 0; n < count; ++n) program_.node[program_.count++] = read(n);
    STD_TORCH_CHECK(next_ == lists.operands.size(), op, ": expected ", next_, " operands, got ", lists.operands.size());
    order_backward();
  }

  const TangentProgram<T>& program() const { return program_; }

 private:
  using Node = TangentNode<T>;

  ValuePlace place(int64_t value, int64_t rows, const char* what) {
    if (value < 0) return {};
    STD_TORCH_CHECK(value < static_cast<int64_t>(places_.size()) && lists_.values[value] == rows, op_, ": expected ",
                    what, " of a node to be a value of ", rows, " rows, got value ", value);
    return places_[value];
  }

  // The next operand, which must have this many numbers (any: -1, or none where optional).
  const T* operand(int64_t numbers, bool optional = false) {
    STD_TORCH_CHECK(next_ < lists_.operands.size(), op_, ": expected more than ", next_, " operands");
    const Tensor& t = lists_.operands[next_++];
    check_like(op_, "operands", t, "Y", Y_);
    check_contiguous(op_, "operands", t);
    STD_TORCH_CHECK(t.numel() == numbers || (optional && t.numel() == 0), op_, ": expected operand ", next_ - 1, " of ",
                    numbers, " numbers, got ", shape_string(t.sizes()));
    return t.numel() == 0 ? nullptr : data<T>(t);
  }

  int64_t size_of_next(int64_t axis) const {
    STD_TORCH_CHECK(next_ < lists_.operands.size(), op_, ": expected more than ", next_, " operands");
    const Tensor& t = lists_.operands[next_];
    check_dim(op_, "operands", t, 2);
    return t.size(axis);
  }

  Node read(int64_t n) {
    const int64_t* f = lists_.nodes.data() + n * kNodeFields;
    Node node{};
    node.kind = static_cast<int>(f[0]);
    node.row_w = f[4], node.row_b = f[5];
    node.alpha = static_cast<T>(lists_.factors[2 * n]), node.beta = static_cast<T>(lists_.factors[2 * n + 1]);
    switch (f[0]) {
      case kLinearNode: read_linear(node, f); break;
      case kSoftmaxNode: read_softmax(node, f); break;
      case kScaleNode:
      case kSumNode:
      case kDiagonalNode: read_elementwise(node, f); break;
      default: STD_TORCH_CHECK(false, op_, ": expected node kinds in [0, ", int{kNodeKinds}, "), got ", f[0]);
    }
    return node;
  }

  void read_linear(Node& node, const int64_t* f) {
    node.R = size_of_next(0), node.I = size_of_next(1);
    node.a = operand(node.R * node.I);
    node.O = size_of_next(0);
    node.W = operand(node.O * node.I);
    node.delta = operand(node.R * node.O);
    node.in[0] = place(f[1], node.R * node.I, "the input");
    node.out = place(f[3], node.R * node.O, "the output");
    check_rows(node.row_w, node.O * node.I);
    check_rows(node.row_b, node.O);
    STD_TORCH_CHECK(node.out.has(), op_, ": expected a linear node with an output");
  }

  void check_rows(int64_t first, int64_t rows) const {
    STD_TORCH_CHECK(first < 0 || first + rows <= Y_.size(0), op_, ": expected Y with at least ", first + rows,
                    " rows, got ", Y_.size(0));
  }

  void read_softmax(Node& node, const int64_t* f) {
    node.R = size_of_next(0), node.O = size_of_next(1);
    node.a = operand(node.R * node.O);
    node.W = operand(node.R);
    node.in[0] = place(f[1], node.R * node.O, "the logits");
  }

  void read_elementwise(Node& node, const int64_t* f) {
    const int64_t value = node.kind == kDiagonalNode ? f[1] : f[3];
    STD_TORCH_CHECK(value >= 0 && value < static_cast<int64_t>(places_.size()), op_,
                    ": expected a node's value in [0, ", places_.size(), "), got ", value);
    node.R = lists_.values[value];
    for (int i = 0; i < 2; ++i) node.in[i] = place(f[1 + i], node.R, "an input");
    node.out = place(f[3], node.R, "the output");
    if (node.kind == kScaleNode) {
      node.a = operand(node.R);
      node.W = operand(node.R, true);
    } else if (node.kind == kDiagonalNode) {
      node.a = operand(node.R, true);
    }
  }

  // In reverse order, the first node that writes the tangent of a value's cotangent sets it, the others add.
  void order_backward() {
    std::vector<bool> written(program_.scratch_rows, false);
    for (int n = program_.count - 1; n >= 0; --n) {
      Node& node = program_.node[n];
      STD_TORCH_CHECK(!node.out.has() || written[node.out.e], op_, ": expected every value to reach the loss; node ", n,
                      "'s output does not");
      for (int i = 0; i < 2; ++i) {
        if (!node.in[i].has()) continue;
        node.adds[i] = written[node.in[i].e];
        written[node.in[i].e] = true;
      }
    }
  }

  const char* op_;
  const Tensor& Y_;
  const SweepLists& lists_;
  TangentProgram<T> program_;
  std::vector<ValuePlace> places_;
  size_t next_ = 0;
};

// Slots that only store: the rows of H Y of every parameter that a node owns.
template <typename T>
UpdateList<T> store_list(const TangentProgram<T>& program) {
  UpdateList<T> list;
  const auto add = [&list](int64_t first, int64_t rows) {
    STD_TORCH_CHECK(first < 0 || list.count < kMaxSlots, "tangent_product: expected at most ", kMaxSlots,
                    " parameters");
    UpdateSlot<T> slot{};
    slot.kind = kStoreUpdate, slot.first = first, slot.rows = rows;
    if (first >= 0) list.slot[list.count++] = slot;
  };
  for (int n = 0; n < program.count; ++n) {
    const TangentNode<T>& node = program.node[n];
    if (node.kind != kLinearNode) continue;
    add(node.row_w, node.O * node.I);
    add(node.row_b, node.O);
  }
  return list;
}

// The rows of theta from the first to the last slot's end: theta itself where the slots cover it.
template <typename T>
int64_t rows_of(const UpdateList<T>& list) {
  int64_t rows = 0;
  for (int i = 0; i < list.count; ++i) rows = std::max(rows, list.slot[i].first + list.slot[i].rows);
  return rows;
}

// Of tangent_product: the nodes' parameters make up all P rows.
template <typename T>
UpdateList<T> product_list(const TangentProgram<T>& program, int64_t P) {
  const UpdateList<T> list = store_list(program);
  int64_t rows = 0;
  for (int i = 0; i < list.count; ++i) rows += list.slot[i].rows;
  STD_TORCH_CHECK(rows == P, "tangent_product: expected nodes that own all ", P, " rows of Y, got ", rows);
  return list;
}

template <typename T>
std::vector<UpdateSlot<T>> read_slots(const Tensor& Y, const UpdateLists& lists) {
  const char* op = "tangent_update_";
  const size_t count = lists.slots.size() / kSlotFields;
  STD_TORCH_CHECK(lists.slots.size() == count * kSlotFields && lists.coefficients.size() == count * kSlotNumbers, op,
                  ": expected slots of ", kSlotFields, " and coefficients of ", kSlotNumbers, " numbers, got ",
                  lists.slots.size(), " and ", lists.coefficients.size());
  std::vector<UpdateSlot<T>> slots(count);
  size_t next = 0;
  for (size_t i = 0; i < count; ++i) {
    UpdateSlot<T>& s = slots[i];
    const int64_t* f = lists.slots.data() + i * kSlotFields;
    s.kind = static_cast<int>(f[0]), s.first = f[1], s.rows = f[2], s.buffer[0] = f[3], s.buffer[1] = f[4];
    STD_TORCH_CHECK(f[0] > kStoreUpdate && f[0] < kUpdateKinds, op, ": expected slot kinds in [1, ", int{kUpdateKinds},
                    "), got ", f[0]);
    const auto check_span = [&](int64_t first) {
      STD_TORCH_CHECK(first >= 0 && s.rows >= 0 && first + s.rows <= Y.size(0), op, ": expected slots within Y's ",
                      Y.size(0), " rows, got ", first, " + ", s.rows);
    };
    check_span(s.first);
    for (int b = 0; b < s.buffers(); ++b) check_span(s.buffer[b]);
    const double* c = lists.coefficients.data() + i * kSlotNumbers;
    T* const numbers[] = {&s.decay, &s.mu, &s.c1, &s.e1, &s.e2, &s.b2, &s.keep};
    for (int n = 0; n < kSlotNumbers; ++n) *numbers[n] = static_cast<T>(c[n]);
    if (s.kind != kAdamUpdate) continue;
    for (const T** v : {&s.q, &s.A, &s.B}) {
      STD_TORCH_CHECK(next < lists.vectors.size(), op, ": expected three vectors for each Adam slot, got ",
                      lists.vectors.size(), " in all");
      check_operand(op, "vectors", lists.vectors[next], "Y", Y, {s.rows});
      *v = data<T>(lists.vectors[next++]);
    }
  }
  return slots;
}

// HY [P, k] holds the rows of all slots, and then there are no nodes.
template <typename T>
void check_given(const Tensor& HY, const Tensor& Y, const std::vector<UpdateSlot<T>>& slots, int nodes) {
  const char* op = "tangent_update_";
  check_like(op, "HY", HY, "Y", Y);
  check_columns(op, "HY", HY);
  STD_TORCH_CHECK(HY.size(1) == Y.size(1) && nodes == 0, op, ": expected HY with ", Y.size(1),
                  " columns like Y and then no nodes, got ", shape_string(HY.sizes()), " and ", nodes);
  for (const UpdateSlot<T>& slot : slots) {
    STD_TORCH_CHECK(slot.first + slot.rows <= HY.size(0), op, ": expected HY with at least ", slot.first + slot.rows,
                    " rows, got ", HY.size(0));
  }
}

// For the sweep: every parameter of the program has exactly one slot, of its size.
template <typename T>
UpdateList<T> update_list(const std::vector<UpdateSlot<T>>& slots, const TangentProgram<T>& program) {
  const UpdateList<T> wanted = store_list(program);
  STD_TORCH_CHECK(static_cast<int>(slots.size()) == wanted.count, "tangent_update_: expected ", wanted.count,
                  " slots, one for each parameter of the nodes, got ", slots.size());
  UpdateList<T> list;
  for (const UpdateSlot<T>& slot : slots) {
    bool found = false;
    for (int i = 0; i < wanted.count; ++i) {
      found = found || (wanted.slot[i].first == slot.first && wanted.slot[i].rows == slot.rows);
    }
    STD_TORCH_CHECK(found, "tangent_update_: expected slots of the nodes' parameters, got rows ", slot.first, " + ",
                    slot.rows);
    list.slot[list.count++] = slot;
  }
  return list;
}

}  // namespace chaos_ext
