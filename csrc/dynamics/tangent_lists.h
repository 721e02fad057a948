// What becomes of the rows of H y, from lists to the slots that the kernels take, with every check. Without torch.
#pragma once

#include <algorithm>
#include <vector>

#include "tangent_builder.h"

namespace chaos_ext {

// Slots that only store: the rows of H Y of every parameter that a node owns. None is empty, none shares a row.
template <typename T>
UpdateList<T> store_list(const char* op, const TangentProgram<T>& program) {
  UpdateList<T> list;
  std::vector<Run> runs;
  const auto add = [&](int64_t first, int64_t rows) {
    if (first < 0) return;
    expect(list.count < kMaxSlots, op, ": expected at most ", kMaxSlots, " parameters");
    UpdateSlot<T> slot{};
    slot.kind = kStoreUpdate, slot.first = first, slot.rows = rows;
    list.slot[list.count++] = slot;
    runs.push_back({first, rows});
  };
  for (int n = 0; n < program.count; ++n) {
    const TangentNode<T>& node = program.node[n];
    if (node.kind == kLinearNode) {
      add(node.row_w, node.O * node.I);
      add(node.row_b, node.O);
    } else if (node.kind == kNormNode) {
      add(node.row_w, node.C);
      add(node.row_b, node.C);
    }
  }
  expect(disjoint(runs), op, ": expected nodes whose parameters share no row, got two that do");
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
  const UpdateList<T> list = store_list("tangent_product", program);
  int64_t rows = 0;
  for (int i = 0; i < list.count; ++i) rows += list.slot[i].rows;
  expect(rows == P, "tangent_product: expected nodes that own all ", P, " rows of Y, got ", rows);
  return list;
}

// Reads the slots of tangent_update_; S are the rows of Y.
template <typename T>
class SlotReader {
 public:
  SlotReader(int64_t S, const UpdateLists<T>& lists) : S_(S), lists_(lists) {}

  std::vector<UpdateSlot<T>> read() {
    const auto count = static_cast<int64_t>(lists_.slots.size()) / kSlotFields;
    expect(static_cast<int64_t>(lists_.slots.size()) == count * kSlotFields &&
               static_cast<int64_t>(lists_.coefficients.size()) == count * kSlotNumbers,
           kOp, ": expected slots of ", kSlotFields, " and coefficients of ", kSlotNumbers, " numbers, got ",
           lists_.slots.size(), " and ", lists_.coefficients.size());
    std::vector<UpdateSlot<T>> slots;
    slots.reserve(count);
    for (int64_t i = 0; i < count; ++i) {
      slots.push_back(slot(record<SlotRecord>(lists_.slots, i), record<CoefficientRecord>(lists_.coefficients, i)));
    }
    expect(next_ == lists_.vectors.size(), kOp, ": expected three vectors for each Adam slot, got ",
           lists_.vectors.size(), " in all");
    expect(disjoint(runs_), kOp, ": expected slots whose rows and buffers share no row of Y, got two that do");
    return slots;
  }

 private:
  static constexpr const char* kOp = "tangent_update_";

  UpdateSlot<T> slot(const SlotRecord& f, const CoefficientRecord& c) {
    expect(f.kind > kStoreUpdate && f.kind < kUpdateKinds, kOp, ": expected slot kinds in [1, ", int{kUpdateKinds},
           "), got ", f.kind);
    UpdateSlot<T> s{};
    s.kind = static_cast<int>(f.kind), s.first = f.first, s.rows = f.rows;
    s.buffer[0] = f.buffer, s.buffer[1] = f.buffer2;
    check_span(s.first, s.rows);
    for (int b = 0; b < s.buffers(); ++b) check_span(s.buffer[b], s.rows);
    s.decay = static_cast<T>(c.decay), s.mu = static_cast<T>(c.mu);
    s.c1 = static_cast<T>(c.c1), s.e1 = static_cast<T>(c.e1), s.e2 = static_cast<T>(c.e2);
    s.b2 = static_cast<T>(c.b2), s.keep = static_cast<T>(c.keep);
    if (s.kind == kAdamUpdate) s.q = vector(s.rows), s.A = vector(s.rows), s.B = vector(s.rows);
    return s;
  }

  void check_span(int64_t first, int64_t rows) {
    expect(within(first, rows, S_), kOp, ": expected slots within Y's ", S_, " rows, got ", first, " + ", rows);
    runs_.push_back({first, rows});
  }

  const T* vector(int64_t rows) {
    expect(next_ < lists_.vectors.size(), kOp, ": expected three vectors for each Adam slot, got ",
           lists_.vectors.size(), " in all");
    const Operand<T>& v = lists_.vectors[next_++];
    expect(v.dim == 1 && v.shape[0] == rows, kOp, ": expected vectors of shape [", rows, "], got ", v);
    return v.data;
  }

  int64_t S_;
  const UpdateLists<T>& lists_;
  std::vector<Run> runs_;  // of theta and buffers, of all slots
  size_t next_ = 0;
};

template <typename T>
std::vector<UpdateSlot<T>> read_slots(int64_t S, const UpdateLists<T>& lists) {
  return SlotReader<T>(S, lists).read();
}

// For the sweep: every parameter of the program has exactly one slot, of its size. Slots without rows are left out.
template <typename T>
UpdateList<T> update_list(const std::vector<UpdateSlot<T>>& slots, const TangentProgram<T>& program) {
  const UpdateList<T> wanted = store_list("tangent_update_", program);
  const auto filled = std::count_if(slots.begin(), slots.end(), [](const UpdateSlot<T>& s) { return s.rows > 0; });
  expect(filled == wanted.count, "tangent_update_: expected ", wanted.count,
         " slots, one for each parameter of the nodes, got ", filled);
  UpdateList<T> list;
  for (const UpdateSlot<T>& slot : slots) {
    if (slot.rows == 0) continue;
    bool found = false;
    for (int i = 0; i < wanted.count; ++i) {
      found = found || (wanted.slot[i].first == slot.first && wanted.slot[i].rows == slot.rows);
    }
    expect(found, "tangent_update_: expected slots of the nodes' parameters, got rows ", slot.first, " + ", slot.rows);
    list.slot[list.count++] = slot;
  }
  return list;
}

// For H Y given, which one launch takes kMaxSlots slots of: those from number `first` on.
template <typename T>
UpdateList<T> part_of(const std::vector<UpdateSlot<T>>& slots, size_t first) {
  UpdateList<T> list;
  for (size_t i = first; i < slots.size() && list.count < kMaxSlots; ++i) list.slot[list.count++] = slots[i];
  return list;
}

}  // namespace chaos_ext
