// The lists of tangent_product and tangent_update_ as the kernels' structures. csrc/dynamics/tangent_sweep.h does the
// same for torch's tensors, and checks them.
#pragma once

#include <pybind11/numpy.h>

#include <vector>

#include "dynamics/tangent_program.h"

namespace emulator {

namespace py = pybind11;
using namespace chaos_ext;

template <typename T>
using Arrays = std::vector<py::array_t<T, py::array::c_style>>;

template <typename T>
TangentProgram<T> tangent_program(const Arrays<T>& operands, const std::vector<int64_t>& values,
                                  const std::vector<int64_t>& nodes, const std::vector<double>& factors) {
  TangentProgram<T> program;
  std::vector<ValuePlace> places;
  for (const int64_t rows : values) {
    places.push_back({program.scratch_rows, program.scratch_rows + rows});
    program.scratch_rows += 2 * rows;
  }
  const auto place = [&places](int64_t value) { return value < 0 ? ValuePlace{} : places.at(value); };
  size_t next = 0;
  const auto operand = [&]() { return operands.at(next++); };
  const auto pointer = [](const auto& array) { return array.size() == 0 ? nullptr : array.data(); };
  for (size_t n = 0; n < nodes.size() / 6; ++n) {
    const int64_t* f = nodes.data() + 6 * n;
    TangentNode<T>& node = program.node[program.count++];
    node = {static_cast<int>(f[0]), {place(f[1]), place(f[2])}, place(f[3])};
    node.row_w = f[4], node.row_b = f[5];
    node.alpha = static_cast<T>(factors[2 * n]), node.beta = static_cast<T>(factors[2 * n + 1]);
    if (node.kind == kLinearNode) {
      const auto a = operand(), W = operand(), delta = operand();
      node.R = a.shape(0), node.I = a.shape(1), node.O = W.shape(0);
      node.a = pointer(a), node.W = pointer(W), node.delta = pointer(delta);
      continue;
    }
    node.R = values.at(f[3] < 0 ? f[1] : f[3]);
    if (node.kind == kSoftmaxNode) node.R = operands.at(next).shape(0), node.O = operands.at(next).shape(1);
    if (node.kind != kSumNode) node.a = pointer(operand());
    if (node.kind == kScaleNode || node.kind == kSoftmaxNode) node.W = pointer(operand());
  }
  std::vector<bool> written(program.scratch_rows, false);
  for (int n = program.count - 1; n >= 0; --n) {
    for (int i = 0; i < 2; ++i) {
      const ValuePlace in = program.node[n].in[i];
      if (!in.has()) continue;
      program.node[n].adds[i] = written[in.e];
      written[in.e] = true;
    }
  }
  return program;
}

// Without slots: those that store the rows of every parameter.
template <typename T>
UpdateList<T> update_list(const TangentProgram<T>& program, const Arrays<T>& vectors, const std::vector<int64_t>& slots,
                          const std::vector<double>& c) {
  UpdateList<T> list;
  size_t next = 0;
  for (size_t n = 0; n < slots.size() / 5; ++n) {
    const int64_t* f = slots.data() + 5 * n;
    UpdateSlot<T>& s = list.slot[list.count++];
    s = {static_cast<int>(f[0]), f[1], f[2], {f[3], f[4]}};
    T* const numbers[] = {&s.decay, &s.mu, &s.c1, &s.e1, &s.e2, &s.b2, &s.keep};
    for (int i = 0; i < 7; ++i) *numbers[i] = static_cast<T>(c[7 * n + i]);
    if (s.kind != kAdamUpdate) continue;
    for (const T** v : {&s.q, &s.A, &s.B}) *v = vectors.at(next++).data();
  }
  for (int n = 0; n < program.count && slots.empty(); ++n) {
    const TangentNode<T>& node = program.node[n];
    if (node.kind != kLinearNode) continue;
    if (node.row_w >= 0) list.slot[list.count++] = {kStoreUpdate, node.row_w, node.O * node.I};
    if (node.row_b >= 0) list.slot[list.count++] = {kStoreUpdate, node.row_b, node.O};
  }
  return list;
}

}  // namespace emulator
