// The nodes of a tangent sweep, from lists to the program that the kernels take, with every check. Without torch.
#pragma once

#include <vector>

#include "tangent_records.h"

namespace chaos_ext {

// Turns the lists into a program. `rows` are those of Y.
template <typename T>
class ProgramBuilder {
 public:
  ProgramBuilder(const char* op, int64_t rows, const SweepLists<T>& lists) : op_(op), rows_(rows), lists_(lists) {
    const auto count = static_cast<int64_t>(lists.nodes.size()) / kNodeFields;
    expect(count <= kMaxNodes && static_cast<int64_t>(lists.nodes.size()) == count * kNodeFields &&
               static_cast<int64_t>(lists.factors.size()) == count * kNodeFactors,
           op, ": expected nodes of ", kNodeFields, " numbers and ", kNodeFactors, " factors each, at most ", kMaxNodes,
           ", got ", lists.nodes.size(), " and ", lists.factors.size());
    place_values();
    for (int64_t n = 0; n < count; ++n) program_.node[program_.count++] = read(n, n + 1 == count);
    expect(next_ == lists.operands.size(), op, ": expected ", next_, " operands, got ", lists.operands.size());
    check_values();
    order_backward();
  }

  const TangentProgram<T>& program() const { return program_; }

 private:
  using Node = TangentNode<T>;

  void place_values() {
    for (const int64_t rows : lists_.values) {
      expect(rows >= 0, op_, ": expected values of at least 0 rows, got ", rows);
      expect(rows <= (kMostNumbers - program_.scratch_rows) / 2, op_, ": expected values of less than 2^49 rows in all",
             ", got one of ", rows);
      ValuePlace place;
      if (rows > 0) place = {program_.scratch_rows, program_.scratch_rows + rows};
      program_.scratch_rows += 2 * rows;
      places_.push_back(place);
    }
    made_.assign(places_.size(), false);
  }

  // Nothing is allocated for values before the operands of their nodes have shown that there are so many numbers.
  void check_values() const {
    for (size_t value = 0; value < places_.size(); ++value) {
      expect(made_[value] || !places_[value].has(), op_, ": expected values that a node makes, got value ", value,
             " of ", lists_.values[value], " rows");
    }
  }

  bool is_value(int64_t value) const { return 0 <= value && value < static_cast<int64_t>(places_.size()); }

  ValuePlace place(int64_t value, int64_t rows, const char* what) const {
    if (value < 0) return {};
    expect(is_value(value) && lists_.values[value] == rows, op_, ": expected ", what, " of a node to be a value of ",
           rows, " rows, got value ", value);
    return places_[value];
  }

  ValuePlace input(int64_t value, int64_t rows, const char* what) const {
    const ValuePlace found = place(value, rows, what);
    expect(!found.has() || made_[value], op_, ": expected ", what,
           " of a node to be made by an earlier one, got value ", value);
    return found;
  }

  ValuePlace output(int64_t value, int64_t rows) {
    const ValuePlace found = place(value, rows, "the output");
    expect(found.has(), op_, ": expected a node with an output, got value ", value);
    expect(!made_[value], op_, ": expected values that one node makes, got a second one for value ", value);
    made_[value] = true;
    return found;
  }

  const Operand<T>& next() const {
    expect(next_ < lists_.operands.size(), op_, ": expected more than ", next_, " operands");
    return lists_.operands[next_];
  }

  // The next operand, which must have this many numbers (or none where optional).
  const T* numbers(int64_t count, bool optional = false) {
    const Operand<T>& t = next();
    const int64_t found = t.numel();
    expect(found == count || (optional && found == 0), op_, ": expected operand ", next_, " of ", count,
           " numbers, got ", t);
    ++next_;
    return t.data;
  }

  // The next operand, which must have this shape.
  const T* operand(std::initializer_list<int64_t> shape) {
    const Operand<T>& t = next();
    const bool good = std::equal(shape.begin(), shape.end(), t.shape, t.shape + t.dim);
    CE_EXPECT(good, op_, ": expected operand ", next_, " of shape ", shape_string(shape), ", got ", t);
    ++next_;
    return t.data;
  }

  int64_t size_of_next(int64_t axis) const {
    const Operand<T>& t = next();
    expect(t.dim == 2, op_, ": expected operands with 2 dimensions, got ", t);
    return t.shape[axis];
  }

  Node read(int64_t n, bool last) {
    const auto f = record<NodeRecord>(lists_.nodes, n);
    const auto factors = record<FactorRecord>(lists_.factors, n);
    Node node{};
    expect(f.kind >= 0 && f.kind < kNodeKinds, op_, ": expected node kinds in [0, ", int{kNodeKinds}, "), got ",
           f.kind);
    node.kind = static_cast<int>(f.kind);
    node.row_w = node.row_b = -1;
    node.alpha = static_cast<T>(factors.alpha), node.beta = static_cast<T>(factors.beta);
    const bool loss = f.kind == kSoftmaxNode || f.kind == kDiagonalNode;
    expect(loss == last, op_,
           ": expected a loss as the last node, where every value is to reach the loss, and before it",
           " none, got kind ", f.kind, " as node ", n);
    expect(f.kind == kSumNode || f.second < 0, op_, ": expected a second input of sums only, got value ", f.second);
    expect(!loss || f.out < 0, op_, ": expected a loss without an output, got value ", f.out);
    if (f.kind == kLinearNode) {
      read_linear(node, f);
    } else if (f.kind == kNormNode) {
      read_norm(node, f, factors.beta);
    } else if (f.kind == kSoftmaxNode) {
      read_softmax(node, f);
    } else {
      read_elementwise(node, f);
    }
    const bool moves = node.in[0].has() || node.in[1].has() || node.row_w >= 0 || node.row_b >= 0;
    expect(moves, op_, ": expected nodes with a tangent, of an input or of a parameter, got none for node ", n);
    return node;
  }

  void read_linear(Node& node, const NodeRecord& f) {
    node.R = size_of_next(0), node.I = size_of_next(1);
    node.a = operand({node.R, node.I});
    node.O = size_of_next(0);
    const int64_t weights = product_of({node.O, node.I}), outputs = product_of({node.R, node.O});
    node.W = operand({node.O, node.I});
    node.delta = operand({node.R, node.O});
    node.in[0] = input(f.first, product_of({node.R, node.I}), "the input");
    node.out = output(f.out, outputs);
    node.row_w = owned(f.row_w, weights), node.row_b = owned(f.row_b, node.O);
  }

  void read_norm(Node& node, const NodeRecord& f, double neighbours) {
    const Operand<T>& xh = next();
    expect(xh.dim == 3, op_, ": expected operand ", next_, " with 3 dimensions, got ", xh);
    node.I = xh.shape[0], node.O = xh.shape[1], node.R = xh.shape[2];
    const int64_t rows = product_of({node.I, node.O, node.R});
    node.a = numbers(rows);
    node.r = operand({node.O});
    const Operand<T>& gamma = next();
    expect(gamma.dim == 1, op_, ": expected operand ", next_, " with 1 dimension, got ", gamma);
    const bool scaled = gamma.shape[0] > 0;
    node.W = numbers(gamma.shape[0]);
    node.delta = operand({node.I, node.O, node.R});
    expect(node.alpha == T(0) || node.alpha == T(1), op_, ": expected a norm's first factor to be 0 or 1, got ",
           node.alpha);
    expect(scaled || (f.row_w < 0 && f.row_b < 0), op_, ": expected no parameters of a norm without gamma");
    node.C = scaled ? gamma.shape[0] : 1;
    node.L =
        scaled && neighbours >= 1 && neighbours <= static_cast<double>(rows) ? static_cast<int64_t>(neighbours) : 1;
    expect(!scaled || (static_cast<double>(node.L) == neighbours && rows % product_of({node.C, node.L}) == 0), op_,
           ": expected a norm's second factor to be numbers that share one of ", node.C, " parameters, out of ", rows,
           ", got ", neighbours);
    node.in[0] = input(f.first, rows, "the input");
    node.out = output(f.out, rows);
    node.row_w = owned(f.row_w, node.C), node.row_b = owned(f.row_b, node.C);
    node.own = program_.scratch_rows;
    if (node.in[0].has()) program_.scratch_rows += rows + node.O;
  }

  // The first row of a parameter; -1 where there is none, or none of its rows.
  int64_t owned(int64_t first, int64_t rows) const {
    if (first < 0) return -1;
    expect(within(first, rows, rows_), op_, ": expected Y with at least the rows of every parameter, got ", first,
           " + ", rows, " of ", rows_);
    return rows == 0 ? -1 : first;
  }

  void read_softmax(Node& node, const NodeRecord& f) {
    node.R = size_of_next(0), node.O = size_of_next(1);
    node.a = operand({node.R, node.O});
    node.W = operand({node.R});
    node.in[0] = input(f.first, product_of({node.R, node.O}), "the logits");
  }

  void read_elementwise(Node& node, const NodeRecord& f) {
    const int64_t value = node.kind == kDiagonalNode ? f.first : f.out;
    expect(is_value(value), op_, ": expected a node's value in [0, ", places_.size(), "), got ", value);
    node.R = lists_.values[value];
    node.in[0] = input(f.first, node.R, "an input");
    node.in[1] = input(f.second, node.R, "an input");
    if (node.kind == kDiagonalNode) {
      node.a = numbers(node.R, true);
      return;
    }
    node.out = output(f.out, node.R);
    if (node.kind == kSumNode) return;
    node.a = numbers(node.R);
    node.W = numbers(node.R, true);
  }

  // In reverse order, the first node that writes the tangent of a value's cotangent sets it, the others add.
  void order_backward() {
    std::vector<bool> written(program_.scratch_rows, false);
    for (int n = program_.count - 1; n >= 0; --n) {
      Node& node = program_.node[n];
      expect(!node.out.has() || written[node.out.e], op_, ": expected every value to reach the loss; node ", n,
             "'s output does not");
      for (int i = 0; i < 2; ++i) {
        if (!node.in[i].has()) continue;
        node.adds[i] = written[node.in[i].e];
        written[node.in[i].e] = true;
      }
    }
  }

  const char* op_;
  int64_t rows_;
  const SweepLists<T>& lists_;
  TangentProgram<T> program_;
  std::vector<ValuePlace> places_;
  std::vector<bool> made_;  // which values the nodes so far make
  size_t next_ = 0;
};

}  // namespace chaos_ext
