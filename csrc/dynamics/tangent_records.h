// The list arguments of tangent_product and tangent_update_, without torch: flat lists of records, one after the other,
// and the tensors that go with them. Python builds the lists from the same records (chaos_ext/_ops/layout.py);
// ../layout.h tells it what was compiled.
#pragma once

#include <cstdint>
#include <cstring>
#include <ostream>
#include <vector>

#include "../common/expect.h"
#include "../common/sizes.h"
#include "tangent_program.h"

namespace chaos_ext {

// Of `nodes`: values by their index, parameters by their first row of theta; -1: constant, or none.
struct NodeRecord {
  int64_t kind, first, second, out, row_w, row_b;
};

// Of `factors`, one a node.
struct FactorRecord {
  double alpha, beta;
};

// Of `slots`: rows of theta, and the first rows of the buffers that the kind has.
struct SlotRecord {
  int64_t kind, first, rows, buffer, buffer2;
};

// Of `coefficients`, one a slot; see UpdateKind.
struct CoefficientRecord {
  double decay, mu, c1, e1, e2, b2, keep;
};

constexpr int64_t kNodeFields = sizeof(NodeRecord) / sizeof(int64_t);
constexpr int64_t kNodeFactors = sizeof(FactorRecord) / sizeof(double);
constexpr int64_t kSlotFields = sizeof(SlotRecord) / sizeof(int64_t);
constexpr int64_t kSlotNumbers = sizeof(CoefficientRecord) / sizeof(double);

// Record n of a list.
template <typename Record, typename Number>
Record record(const std::vector<Number>& list, int64_t n) {
  Record one;
  std::memcpy(&one, list.data() + n * (sizeof(Record) / sizeof(Number)), sizeof(Record));
  return one;
}

// A tensor as the lists need it: its numbers in C order, null where it has none.
template <typename T>
struct Operand {
  const T* data;
  const int64_t* shape;  // the tensor's own
  int64_t dim;

  int64_t numel() const {
    int64_t numbers = 1;
    for (int64_t axis = 0; axis < dim; ++axis) numbers *= shape[axis];
    return numbers;
  }

  friend std::ostream& operator<<(std::ostream& out, const Operand& o) {
    return out << shape_string(std::vector<int64_t>(o.shape, o.shape + o.dim));
  }
};

// The list arguments of both operators.
template <typename T>
struct SweepLists {
  std::vector<Operand<T>> operands;    // of the nodes, in their order
  const std::vector<int64_t>& values;  // rows of each value; 0: without a tangent
  const std::vector<int64_t>& nodes;   // NodeRecords
  const std::vector<double>& factors;  // FactorRecords
};

template <typename T>
struct UpdateLists {
  std::vector<Operand<T>> vectors;          // q, A, B of the Adam slots, in their order
  const std::vector<int64_t>& slots;        // SlotRecords
  const std::vector<double>& coefficients;  // CoefficientRecords
};

}  // namespace chaos_ext
