// numpy arrays as the operands of csrc/dynamics/tangent_records.h: what packs and checks the lists is the code of csrc.
#pragma once

#include <pybind11/numpy.h>

#include <vector>

#include "dynamics/tangent_lists.h"

namespace emulator {

namespace py = pybind11;

template <typename T>
using Arrays = std::vector<py::array_t<T, py::array::c_style>>;

template <typename T>
std::vector<chaos_ext::Operand<T>> operands_of(const Arrays<T>& arrays) {
  std::vector<chaos_ext::Operand<T>> operands;
  for (const auto& array : arrays) {
    operands.push_back({array.size() == 0 ? nullptr : array.data(), array.shape(), array.ndim()});
  }
  return operands;
}

}  // namespace emulator
