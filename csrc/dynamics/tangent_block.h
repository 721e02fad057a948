// What the CPU kernels of a tangent sweep share: the lists of a call, and one block of columns. One SweepKernels table
// exists per instruction set and dtype.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "tangent_program.h"

namespace chaos_ext {

// Operands as the tiles read them: [I, R], [I, O] and [O, R], where needed.
template <typename T>
struct Packed {
  const T *a = nullptr, *W = nullptr, *delta = nullptr;
};

// What is the same for all blocks of a call.
template <typename T>
struct SweepCall {
  const TangentProgram<T>& program;
  const UpdateList<T>& slots;              // of the program's parameters
  const std::vector<UpdateSlot<T>> given;  // of an update where H Y is given
  const std::vector<Packed<T>> packed;     // of each node
  int64_t S, P, k;                         // rows of Y, rows of HY or out, columns
};

// One block of w columns: where they are read and written, and its tangents. Pointers are at the first column; what a
// call does not have is null.
template <typename T>
struct SweepBlock {
  const SweepCall<T>* call;
  const T* theta;  // [S, w], rows ld apart
  T* Y = nullptr;  // the same, to be updated
  int64_t ld;
  const T* HY = nullptr;  // [P, w], rows ld_given apart
  int64_t ld_given = 0;
  T* out = nullptr;  // [P, w], rows ld_out apart
  int64_t ld_out = 0;
  T* squares = nullptr;  // [w]
  T* scratch = nullptr;  // [program.scratch_rows, w], rows stride apart
  int64_t w = 0, stride = 0;

  T* row(int64_t i) const { return scratch + i * stride; }
};

template <typename T>
struct SweepKernels {
  void (*sweep)(const SweepBlock<T>&);
  void (*update_given)(const SweepBlock<T>&, const UpdateSlot<T>&);
  int64_t lanes;
};

// [rows, columns] -> [columns, rows].
template <typename T>
const T* transposed(const T* in, int64_t rows, int64_t columns, std::vector<std::vector<T>>& keep) {
  std::vector<T> out(rows * columns);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) out[c * rows + r] = in[r * columns + c];
  }
  keep.push_back(std::move(out));
  return keep.back().data();
}

// Memory of a thread that outlives the call: fresh pages would cost more than a narrow block's sweep.
template <typename T>
T* thread_memory(int which, int64_t numbers) {
  thread_local std::vector<T> memory[3];
  if (static_cast<int64_t>(memory[which].size()) < numbers) memory[which].resize(numbers);
  return memory[which].data();
}

// columns of rows [rows, ld] to padded rows [rows, w], or back.
template <typename T>
void pad(const T* from, int64_t ld, T* to, int64_t rows, int64_t columns, int64_t w) {
  for (int64_t r = 0; r < rows; ++r, from += ld, to += w) {
    std::fill(std::copy(from, from + columns, to), to + w, T(0));
  }
}

template <typename T>
void unpad(const T* from, int64_t w, T* to, int64_t ld, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r, from += w, to += ld) std::copy(from, from + columns, to);
}

// columns of rows [rows, ld] to one after the other [columns, rows], or back.
template <typename T>
void to_columns(const T* from, int64_t ld, T* to, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r, from += ld) {
    for (int64_t j = 0; j < columns; ++j) to[j * rows + r] = from[j];
  }
}

template <typename T>
void from_columns(const T* from, T* to, int64_t ld, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r, to += ld) {
    for (int64_t j = 0; j < columns; ++j) to[j] = from[j * rows + r];
  }
}

}  // namespace chaos_ext
