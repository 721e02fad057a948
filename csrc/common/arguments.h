// What every operator asks of all its tensors together, before it looks at any of them alone: one device, sizes that
// memory can hold, memory behind every element, and nothing written that is also read or written by another name.
//
// chaos_ext/_ops/checks.py asks the same of fake tensors, as far as they can tell.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "checks.h"
#include "sizes.h"

namespace chaos_ext {

// A tensor of a call by its name; null where an optional one is not given.
struct Argument {
  const char* name;
  const Tensor* tensor;
  bool written;
};

inline Argument reads(const char* name, const Tensor& t) { return {name, &t, false}; }
inline Argument reads(const char* name, const std::optional<Tensor>& t) { return {name, t ? &*t : nullptr, false}; }
inline Argument writes(const char* name, const Tensor& t) { return {name, &t, true}; }
inline Argument writes(const char* name, const std::optional<Tensor>& t) { return {name, t ? &*t : nullptr, true}; }

inline void add_reads(std::vector<Argument>& arguments, const char* name, const std::vector<Tensor>& tensors) {
  for (const Tensor& t : tensors) arguments.push_back(reads(name, t));
}

// Where a tensor's elements lie: rows of `width` bytes, `stride` bytes apart. One row for all but the rows of a matrix,
// from the first element to the last.
struct Memory {
  uintptr_t first = 0;
  int64_t rows = 0, width = 0, stride = 0;

  uintptr_t row(int64_t r) const { return first + static_cast<uintptr_t>(r * stride); }
  uintptr_t end() const { return rows == 0 ? first : row(rows - 1) + static_cast<uintptr_t>(width); }

  // Whether a row meets the bytes begin .. stop.
  bool meets(uintptr_t begin, uintptr_t stop) const {
    if (begin >= end() || stop <= first) return false;
    if (rows == 1) return true;
    int64_t r = begin < first ? 0 : std::min(static_cast<int64_t>(begin - first) / stride, rows - 1);
    if (row(r) + static_cast<uintptr_t>(width) <= begin) ++r;
    return r < rows && row(r) < stop;
  }
};

inline bool overlap(const Memory& a, const Memory& b) {
  if (a.rows > b.rows) return overlap(b, a);
  if (a.first >= b.end() || b.first >= a.end()) return false;
  for (int64_t r = 0; r < a.rows; ++r) {
    if (b.meets(a.row(r), a.row(r) + static_cast<uintptr_t>(a.width))) return true;
  }
  return false;
}

namespace argument_checks {

inline bool is_strided(const Tensor& t) {
  int32_t layout = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(t.get(), &layout));
  return layout == aoti_torch_layout_strided();
}

inline int64_t storage_numbers(const Tensor& t, int64_t item) {
  int64_t bytes = 0, offset = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(t.get(), &offset));
  return bytes / item - offset;
}

// The sizes, with empty axes as 1, so that no axis is absurd beside an empty one.
inline bool is_possible(const Tensor& t) {
  int64_t numbers = 1;
  for (const int64_t size : t.sizes()) {
    if (__builtin_mul_overflow(numbers, std::max<int64_t>(size, 1), &numbers)) return false;
  }
  return numbers <= kMostNumbers;
}

// Elements from the first to the last one; torch refuses strides for which this overflows.
inline int64_t extent(const Tensor& t) {
  int64_t last = 0, axis = 0;
  for (const int64_t size : t.sizes()) last += (size - 1) * (size > 1 ? t.stride(axis) : 0), ++axis;
  return last + 1;
}

inline Memory memory_of(const char* op, const Argument& a) {
  const Tensor& t = *a.tensor;
  if (t.numel() == 0) return {};
  const auto item = static_cast<int64_t>(t.element_size());
  const int64_t numbers = extent(t);
  const auto first = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  CE_EXPECT(first != 0 && numbers <= storage_numbers(t, item), op, ": expected ", a.name,
            " with memory behind all its elements, got sizes ", shape_string(t.sizes()), " on a storage for ",
            std::max<int64_t>(0, storage_numbers(t, item)), " from its first element on");
  CE_EXPECT(first % static_cast<uintptr_t>(item) == 0, op, ": expected ", a.name, " aligned to its ", item,
            "-byte elements (call .clone() first), got address ", first);
  Memory memory{first, 1, numbers * item, 0};
  const bool matrix = t.dim() == 2 && t.size(0) > 1 && (t.size(1) == 1 || t.stride(1) == 1);
  if (matrix && t.stride(0) >= t.size(1)) {
    memory.rows = t.size(0), memory.width = t.size(1) * item, memory.stride = t.stride(0) * item;
  }
  return memory;
}

inline bool repeats(const Tensor& t) {
  for (int64_t axis = 0; axis < t.dim(); ++axis) {
    if (t.size(axis) > 1 && t.stride(axis) == 0) return true;
  }
  return false;
}

inline void check_alone(const char* op, const Argument& a, const Argument& lead) {
  const Tensor& t = *a.tensor;
  CE_EXPECT(t.defined(), op, ": expected ", a.name, " as a tensor, got None");
  CE_EXPECT(t.device() == lead.tensor->device(), op, ": expected ", a.name, " on the device of ", lead.name, " (",
            device_string(*lead.tensor), "), got ", device_string(t));
  CE_EXPECT(is_strided(t), op, ": expected ", a.name, " dense, got a sparse or packed layout");
  CE_EXPECT(is_possible(t), op, ": expected ", a.name, " of at most 2^50 numbers, empty axes counted as 1, got ",
            shape_string(t.sizes()));
  CE_EXPECT(!a.written || t.numel() == 0 || !repeats(t), op, ": expected ", a.name,
            ", which is written, without repeated elements (call .clone() first), got strides ",
            shape_string(t.strides()));
}

}  // namespace argument_checks

// The first argument is given always; those that are written come before those that are read.
template <typename Arguments>
void check_arguments(const char* op, const Arguments& arguments) {
  using namespace argument_checks;
  for (const Argument& a : arguments) {
    if (a.tensor != nullptr) check_alone(op, a, *std::begin(arguments));
  }
  std::pair<const char*, Memory> written[3];
  int count = 0;
  for (const Argument& a : arguments) {
    if (a.tensor == nullptr) continue;
    const Memory memory = memory_of(op, a);
    for (int i = 0; i < count; ++i) {
      CE_EXPECT(!overlap(written[i].second, memory), op, ": expected ", written[i].first,
                ", which is written, in memory of its own, got some that ", a.name, " shares");
    }
    if (a.written) written[count++] = {a.name, memory};
  }
}

inline void check_arguments(const char* op, std::initializer_list<Argument> arguments) {
  check_arguments<std::initializer_list<Argument>>(op, arguments);
}

}  // namespace chaos_ext
