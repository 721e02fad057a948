// The tensor arguments of tangent_product and tangent_update_, checked.
#pragma once

#include <optional>
#include <vector>

#include "../common/arguments.h"
#include "tangent_lists.h"

namespace chaos_ext {

// Y or HY: rows of any stride, neighbouring columns.
inline void check_columns(const char* op, const char* arg, const Tensor& Y) {
  check_dim(op, arg, Y, 2);
  const int64_t rows = Y.size(0), k = Y.size(1);
  CE_EXPECT(k <= 1 || (Y.stride(1) == 1 && (rows <= 1 || Y.stride(0) >= k)), op, ": expected ", arg,
            " with contiguous rows (strides [>= k, 1]), got strides ", shape_string(Y.strides()));
}

// A sum for each column is returned also where there is nothing to sum.
constexpr int64_t kMostEmptyColumns = int64_t{1} << 24;

// The tensors of tangent_product, where only Y is given before the lists, or of tangent_update_.
inline void check_sweep(const char* op, const Argument& Y, const std::optional<Tensor>& HY,
                        const std::vector<Tensor>& operands, const std::vector<Tensor>& vectors) {
  std::vector<Argument> all{Y, reads("HY", HY)};
  add_reads(all, "operands", operands);
  add_reads(all, "vectors", vectors);
  check_arguments(op, all);
  check_floating(op, "Y", *Y.tensor);
  check_columns(op, "Y", *Y.tensor);
  const int64_t rows = Y.tensor->size(0), k = Y.tensor->size(1);
  CE_EXPECT(rows > 0 || k <= kMostEmptyColumns, op, ": expected at most 2^24 columns where Y has no rows, got ", k);
}

inline int64_t row_stride(const Tensor& Y) { return Y.size(0) > 1 ? Y.stride(0) : Y.size(1); }

// Tensors like Y as plain operands, which point into them.
template <typename T>
std::vector<Operand<T>> operands_of(const char* op, const char* arg, const std::vector<Tensor>& tensors,
                                    const Tensor& Y) {
  std::vector<Operand<T>> operands;
  operands.reserve(tensors.size());
  for (const Tensor& t : tensors) {
    check_like(op, arg, t, "Y", Y);
    check_contiguous(op, arg, t);
    operands.push_back({t.numel() == 0 ? nullptr : data<T>(t), t.sizes().data(), t.dim()});
  }
  return operands;
}

template <typename T>
SweepLists<T> sweep_lists(const char* op, const Tensor& Y, const std::vector<Tensor>& operands,
                          const std::vector<int64_t>& values, const std::vector<int64_t>& nodes,
                          const std::vector<double>& factors) {
  return {operands_of<T>(op, "operands", operands, Y), values, nodes, factors};
}

template <typename T>
UpdateLists<T> update_lists(const Tensor& Y, const std::vector<Tensor>& vectors, const std::vector<int64_t>& slots,
                            const std::vector<double>& coefficients) {
  return {operands_of<T>("tangent_update_", "vectors", vectors, Y), slots, coefficients};
}

// HY [P, k] holds the rows of all slots, and then there are no nodes.
template <typename T>
void check_given(const Tensor& HY, const Tensor& Y, const std::vector<UpdateSlot<T>>& slots, int nodes) {
  const char* op = "tangent_update_";
  check_like(op, "HY", HY, "Y", Y);
  check_columns(op, "HY", HY);
  CE_EXPECT(HY.size(1) == Y.size(1) && nodes == 0, op, ": expected HY with ", Y.size(1),
            " columns like Y and then no nodes, got ", shape_string(HY.sizes()), " and ", nodes);
  for (const UpdateSlot<T>& slot : slots) {
    CE_EXPECT(within(slot.first, slot.rows, HY.size(0)), op, ": expected HY with at least ", slot.first + slot.rows,
              " rows, got ", HY.size(0));
  }
}

}  // namespace chaos_ext
