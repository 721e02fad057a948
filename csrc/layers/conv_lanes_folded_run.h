// The folded products of conv_lanes_folded.h, run. Parallel over blocks of the result, which are alike whatever the
// number of threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>

#include "conv_lanes_folded.h"

namespace chaos_ext {

template <typename T>
struct FoldedCall {
  ConvShape s;
  const ConvKernels<T>& kernels;
  T* out;
  const T *scalars, *lanes;
  bool accumulate;
};

constexpr int64_t kBlockLanes = 256;       // lanes of a block of a folded product, about
constexpr int64_t kBlockTiles = 16;        // tiles of its rows
constexpr int64_t kBlockBytes = 1 << 18;   // of its unfolded image at a time
constexpr int64_t kRowsNumbers = 1 << 20;  // numbers of the operand of the rows that are in tiles at a time
constexpr int64_t kFewestTerms = 1024;     // at a time, of sums over all places

// Numbers from one row of lanes to the next: an odd number of cache lines.
template <typename T>
int64_t lane_row(int64_t lanes) {
  constexpr int64_t kLine = 64 / sizeof(T);
  return ((lanes + kLine - 1) / kLine | 1) * kLine;
}

// Memory that this thread keeps, of at least `size` numbers, at a cache line.
template <typename T>
T* kept_scratch(int64_t size) {
  static thread_local std::vector<T> memory;
  constexpr int64_t kLine = 64 / sizeof(T);
  if (static_cast<int64_t>(memory.size()) < size + kLine) memory.resize(size + kLine);
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return reinterpret_cast<T*>((address + 63) / 64 * 64);
}

// Rows m0 to m1, in tiles at A, of the lanes of a block.
template <typename T>
void folded_block(const FoldedProduct<T>& p, const T* A, int64_t rows, int64_t m0, int64_t m1, const LaneBlock& block,
                  const std::vector<std::vector<Stretch>>& own) {
  const int64_t K = p.K(), lanes = (block.u1 - block.u0) * p.lane_columns, vector = p.kernels.vector;
  const int64_t fit = kBlockBytes / static_cast<int64_t>(sizeof(T)) / block.row;
  const int64_t terms = std::min(K, std::max<int64_t>(16, fit));
  T *B = kept_scratch<T>((terms + m1 - m0) * block.row), *C = B + terms * block.row;
  if (K == 0) std::fill_n(C, (m1 - m0) * block.row, T(0));
  DenseProduct<T> product{A, rows, K * rows, B, block.row, C, block.row, m1 - m0, 0, 0, false};
  product.lanes = (lanes + vector - 1) / vector * vector;
  std::optional<PaddedPlanes<T>> planes;
  if (p.to_weight && PaddedPlanes<T>::fit(p)) planes.emplace(p, block);
  for (int64_t t0 = 0; t0 < K; t0 += terms) {
    const int64_t t1 = std::min(K, t0 + terms);
    if (planes) {
      unfold_places(p, *planes, block.row, p.first_term + t0, p.first_term + t1, B);
    } else if (p.to_weight) {
      unfold_scattered_places(p, block, p.first_term + t0, p.first_term + t1, B);
    } else {
      unfold_taps(p, block, own, t0, t1, B);
    }
    product.A = A + t0 * rows, product.K = t1 - t0, product.accumulate = t0 > 0;
    p.kernels.dense(product);
  }
  p.row_columns == 1 ? store_rows(p, block, C, m0, m1) : store_channels(p, block, C, m0, m1);
}

inline int64_t parts_of(int64_t count, int64_t most) { return (count + most - 1) / most; }

// Groups g0 to g1, rows m0 to m1 of each.
template <typename T>
void folded_rows(const FoldedProduct<T>& p, int64_t rows, int64_t g0, int64_t g1, int64_t m0, int64_t m1) {
  const int64_t K = p.K(), size = tiled_size(m1 - m0, K, rows), units = p.units(), groups = g1 - g0;
  const std::unique_ptr<T[]> A = scratch<T>(groups * size);
  const int64_t slices = parts_of(m1 - m0, kBlockTiles * rows), slice = kBlockTiles * rows;
  torch::stable::parallel_for(0, groups * slices, parts_of(kTaskWork / 4, slice * K + 1),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i) {
                                  const int64_t m = m0 + i % slices * slice;
                                  rows_in_tiles(p, g0 + i / slices, m, std::min(m1, m + slice), rows,
                                                A.get() + i / slices * size + (m - m0) * K);
                                }
                              });
  const int64_t most = std::max<int64_t>(1, kBlockLanes / p.lane_columns),
                even = parts_of(units, parts_of(units, most));
  // To the weight, a row of taps is copied at once.
  const int64_t run = p.to_weight ? static_cast<int64_t>(p.own.columns.taps.size()) : 1;
  const int64_t per_block = parts_of(even, run) * run, blocks = parts_of(units, per_block);
  const int64_t row = lane_row<T>(per_block * p.lane_columns + PaddedPlanes<T>::kMostCopied);
  const int64_t tall =
      std::max<int64_t>(kBlockTiles, kBlockBytes / static_cast<int64_t>(sizeof(T)) / (row * rows)) * rows;
  const int64_t talls = parts_of(m1 - m0, tall);
  // Groups of a task share what its lanes come from.
  const int64_t together = parts_of(groups, 4), sets = parts_of(groups, together);
  const int64_t work = std::max<int64_t>(1, together * std::min(tall, m1 - m0) * K * per_block * p.lane_columns);
  const int64_t grain = std::max<int64_t>(1, kTaskWork / work);
  torch::stable::parallel_for(0, sets * talls * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t set = task / (talls * blocks), top = task / blocks % talls * tall,
                    first = task % blocks * per_block;
      LaneBlock block{0, first, std::min(units, first + per_block), row};
      const auto own = block_stretches(p, block);
      for (int64_t g = set * together; g < std::min(groups, (set + 1) * together); ++g) {
        block.g = g0 + g;
        folded_block(p, A.get() + g * size + top * K, rows, m0 + top, std::min(m1, m0 + top + tall), block, own);
      }
    }
  });
}

template <typename T>
void run_folded(const FoldedProduct<T>& p) {
  const int64_t M = p.M(), K = std::max<int64_t>(1, p.K()), rows = p.kernels.rows_of(M);
  const int64_t group = tiled_size(M, K, rows), groups = std::max<int64_t>(1, kRowsNumbers / group);
  const int64_t most = std::max<int64_t>(1, kRowsNumbers / (rows * K)) * rows;
  for (int64_t g = 0; g < p.s.groups; g += groups) {
    for (int64_t m = 0; m < M; m += most) {
      folded_rows(p, rows, g, std::min(p.s.groups, g + groups), m, std::min(M, m + most));
    }
  }
}

// What the classes of two axes cost, in numbers that are multiplied; a class in itself as much as kClass.
inline double classes_cost(const std::vector<AxisClass>& rows, const std::vector<AxisClass>& columns, int64_t M,
                           int64_t channels, int64_t lanes, int64_t vector) {
  constexpr double kClass = 1 << 18;
  double cost = 0;
  for (const AxisClass& a : rows) {
    for (const AxisClass& b : columns) {
      const FoldedClass own{a, b};
      const int64_t vectors = parts_of(own.places() * lanes, vector);
      cost += kClass + static_cast<double>(own.taps() * channels) * M * (vectors + 2) * vector;
    }
  }
  return cost;
}

using ClassesOfAxes = std::pair<std::vector<AxisClass>, std::vector<AxisClass>>;

// Of the places of the other image: with the taps outside left out along both axes, along the rows, or along none.
inline ClassesOfAxes cheapest_classes(const ConvShape& s, const Unfolding& u, int64_t M, int64_t lanes,
                                      int64_t vector) {
  ClassesOfAxes best;
  double least = 0;
  for (const auto& [exact_rows, exact_columns] : {std::pair{false, false}, {true, false}, {true, true}}) {
    ClassesOfAxes found{axis_classes(u.rows, exact_rows), axis_classes(u.columns, exact_columns)};
    const double cost = classes_cost(found.first, found.second, M, u.plain.channels, lanes, vector);
    if (best.first.empty() || cost < least) best = std::move(found), least = cost;
  }
  return best;
}

// Kinds 0 to 3: the weight and the unfolded image, one of them with columns, to the other image.
template <typename T>
void folded_to_image(const FoldedCall<T>& q, const Unfolding& u, bool weight_has_columns) {
  const ConvShape& s = q.s;
  const int64_t row_columns = weight_has_columns ? s.k : 1, lane_columns = s.k / row_columns;
  const auto [rows, columns] =
      cheapest_classes(s, u, u.other.channels * row_columns, s.N * lane_columns, q.kernels.vector);
  for (const AxisClass& a : rows) {
    for (const AxisClass& b : columns) {
      const FoldedClass own{a, b};
      if (own.taps() == 0 && q.accumulate) continue;
      FoldedProduct<T> p{s, q.kernels, u, own, row_columns, lane_columns, false};
      p.rows_from = weight_has_columns ? q.lanes : q.scalars, p.image = weight_has_columns ? q.scalars : q.lanes;
      p.out = q.out, p.accumulate = q.accumulate;
      p.rows = weight_addresses(s, u, own, row_columns), p.lanes = image_addresses(s, u, own);
      p.stretches = own.stretches(u.plain.width), p.terms = static_cast<int64_t>(p.rows.at.size());
      run_folded(p);
    }
  }
}

// Kinds 4 and 5: the two images to the weight, each tap of which belongs to one class or to none.
template <typename T>
void folded_to_weight(const FoldedCall<T>& q, const Unfolding& u) {
  const ConvShape& s = q.s;
  const auto rows = axis_classes(u.rows, false), columns = axis_classes(u.columns, false);
  int64_t reached = 0;
  for (const AxisClass& a : rows) {
    for (const AxisClass& b : columns) reached += FoldedClass{a, b}.taps();
  }
  if (!q.accumulate && reached < s.taps()) std::fill_n(q.out, s.O * s.Cg * s.taps() * s.k, T(0));
  for (const AxisClass& a : rows) {
    for (const AxisClass& b : columns) {
      const FoldedClass own{a, b};
      if (own.taps() == 0) continue;
      FoldedProduct<T> p{s, q.kernels, u, own, s.k, 1, true};
      p.rows_from = q.lanes, p.image = q.scalars, p.out = q.out, p.accumulate = q.accumulate;
      p.rows = image_addresses(s, u, own), p.lanes = weight_addresses(s, u, own, s.k);
      // Rows are long: better all of them for some terms than some for all.
      const auto all = static_cast<int64_t>(p.rows.at.size());
      const int64_t most = std::max(kFewestTerms, kRowsNumbers / p.M());
      for (; p.first_term < all; p.first_term += p.terms, p.accumulate = true) {
        p.terms = std::min(most, all - p.first_term);
        run_folded(p);
      }
    }
  }
}

template <typename T>
void folded(const FoldedCall<T>& q, int64_t kind) {
  switch (kind) {
    case 0: return folded_to_image(q, unfolded_input(q.s), false);
    case 1: return folded_to_image(q, unfolded_input(q.s), true);
    case 2: return folded_to_image(q, unfolded_output(q.s), false);
    case 3: return folded_to_image(q, unfolded_output(q.s), true);
    case 4: return folded_to_weight(q, unfolded_input(q.s));
    case 5: return folded_to_weight(q, unfolded_output(q.s));
  }
}

}  // namespace chaos_ext
