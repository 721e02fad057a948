// tangent_product and tangent_update_ on the CPU. Formulas and cost: tangent_sweep.h. A thread takes blocks of columns
// whose tangents stay in its L2 cache. Columns that do not fill a vector go through a padded copy, or, a few of them or
// long ones, one by one through a kernel whose vectors run along the inputs instead.
//
// A layer's rows of Y are read twice, going forward and when they are updated, and written once. Keeping them in cache
// in between is possible only for blocks so narrow that memory answers more slowly than it does to a second, longer
// read (measured, 256-20-10 in float32, one thread: 36 ms at 64 columns a block, 20 ms at 384).

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <type_traits>

#include "../common/cpu_target.h"
#include "../common/huge_pages_cpu.h"
#include "../losses/cross_entropy_math.h"
#include "tangent_block.h"
#include "tangent_sweep.h"

namespace chaos_ext {
namespace {

#define CE_FILE "../dynamics/tangent_sweep_kernel.inl"
#include "../common/foreach_target.inl"

const SweepKernels<float>& kernels_for(float) { return CE_CHOOSE(float, kernels); }
const SweepKernels<double>& kernels_for(double) { return CE_CHOOSE(double, kernels); }

namespace column {

#define CE_FILE "../dynamics/tangent_column_kernel.inl"
#include "../common/foreach_target.inl"

const SweepKernels<float>& kernels_for(float) { return CE_CHOOSE(float, kernels); }
const SweepKernels<double>& kernels_for(double) { return CE_CHOOSE(double, kernels); }

}  // namespace column

constexpr int64_t kRowBytes = 1536;         // of a block: rows of Y are pages apart, and want to be read in long runs,
constexpr int64_t kTangentBytes = 7 << 18;  // while the block's tangents stay in the L2 cache
constexpr int64_t kThreadWork = 1 << 22;    // multiply-adds that are worth a thread
constexpr int64_t kApart = 4;               // columns that are copied at a time to be swept one by one
constexpr int64_t kPaddedBytes = 1 << 20;   // of a vector of columns: more leaves the cache between two layers

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Multiply-adds of one column.
template <typename T>
int64_t column_work(const TangentProgram<T>& program, int64_t S) {
  int64_t work = std::max<int64_t>(1, S);
  for (int i = 0; i < program.count; ++i) {
    const TangentNode<T>& n = program.node[i];
    if (n.kind == kLinearNode) work += (n.in[0].has() ? 6 : 2) * n.R * n.O * n.I;
    if (n.kind == kNormNode) work += 20 * n.numbers();
  }
  return work;
}

// Columns of a block: as many as the cache bears, yet work for every thread that is worth waking.
template <typename T>
int64_t block_width(int64_t tangent_rows, int64_t work, int64_t k) {
  const int64_t lanes = kernels_for(T{}).lanes, item = sizeof(T), panel = 4 * lanes;
  const int64_t fits = kTangentBytes / (std::max<int64_t>(1, tangent_rows) * item) / panel * panel;
  const int64_t most = std::clamp<int64_t>(fits, panel, std::max(panel, kRowBytes / item));
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t least = std::max((k + threads - 1) / threads, kThreadWork / work);
  return std::min(most, std::max(lanes, round_up(least, lanes)));
}

// Columns of S rows that are swept side by side; the others one by one.
template <typename T>
int64_t side_by_side(int64_t columns, int64_t S) {
  const int64_t lanes = kernels_for(T{}).lanes, rest = columns % lanes, item = sizeof(T);
  const int64_t most = S * lanes * item > kPaddedBytes ? lanes - 2 : 3 * lanes / 8;
  return rest > most ? columns : columns - rest;
}

template <typename T>
std::vector<Packed<T>> pack(const TangentProgram<T>& program, int64_t k, int64_t S, std::vector<std::vector<T>>& keep) {
  std::vector<Packed<T>> packed(program.count);
  for (int i = 0; side_by_side<T>(k, S) > 0 && i < program.count; ++i) {
    const TangentNode<T>& n = program.node[i];
    if (n.kind != kLinearNode) continue;
    if (n.row_w >= 0) packed[i].a = transposed(n.a, n.R, n.I, keep);
    if (n.in[0].has()) packed[i].W = transposed(n.W, n.O, n.I, keep);
    if (n.in[0].has() && n.row_w >= 0) packed[i].delta = transposed(n.delta, n.R, n.O, keep);
  }
  return packed;
}

// One call: `block` starts at column 0, to be moved.
template <typename T>
struct Sweep {
  SweepBlock<T> block;

  const SweepCall<T>& call() const { return *block.call; }

  void run(int64_t x, int64_t width) const {
    const int64_t columns = std::min(width, call().k - x), lanes = kernels_for(T{}).lanes;
    const int64_t together = side_by_side<T>(columns, call().S), whole = together / lanes * lanes;
    if (whole > 0) run_block(x, whole, whole, kernels_for(T{}));
    if (together > whole) run_block(x + whole, together - whole, lanes, kernels_for(T{}));
    for (int64_t j = together; j < columns; j += kApart) run_apart(x + j, std::min(kApart, columns - j));
  }

  // Columns x .. x + columns one by one, each of them in a row.
  void run_apart(int64_t x, int64_t columns) const {
    const int64_t S = call().S, P = call().P;
    SweepBlock<T> q = block;
    const bool apart = q.ld != 1, given = q.HY != nullptr && q.ld_given != 1, gives = q.out != nullptr && q.ld_out != 1;
    T* const own = thread_memory<T>(1, apart ? S * columns : 0);
    T* const other = thread_memory<T>(2, gives || given ? P * columns : 0);
    if (apart) to_columns(q.theta + x, q.ld, own, S, columns);
    if (given) to_columns(q.HY + x, q.ld_given, other, P, columns);
    for (int64_t j = 0; j < columns; ++j) {
      if (apart) q.theta = own + j * S, q.Y = block.Y == nullptr ? nullptr : own + j * S, q.ld = 1;
      if (given) q.HY = other + j * P, q.ld_given = 1;
      if (gives) q.out = other + j * P, q.ld_out = 1;
      run_column(q, x + j);
    }
    if (gives) from_columns(other, block.out + x, block.ld_out, P, columns);
    if (apart && block.Y != nullptr) from_columns(own, block.Y + x, block.ld, S, columns);
  }

  // Rows of one number without gaps; of a single column these are the block's own.
  void run_column(SweepBlock<T>& q, int64_t x) const {
    T squares = T(0);
    q.w = 1, q.stride = 1, q.squares = &squares;
    q.scratch = thread_memory<T>(0, call().program.scratch_rows);
    compute(q, column::kernels_for(T{}));
    if (block.squares != nullptr) block.squares[x] = squares;
  }

  // Columns x .. x + columns, as w columns side by side.
  void run_block(int64_t x, int64_t columns, int64_t w, const SweepKernels<T>& kernels) const {
    SweepBlock<T> q = block;
    q.w = w;
    // One vector more than a row: where samples lay a multiple of 4 KiB apart, loads would wait for unrelated stores.
    q.stride = w + kernels.lanes;
    q.scratch = thread_memory<T>(0, (call().program.scratch_rows + 1) * q.stride);
    q.squares = q.row(call().program.scratch_rows);
    std::fill(q.squares, q.squares + w, T(0));
    q.theta += x;
    if (q.Y != nullptr) q.Y += x;
    if (q.HY != nullptr) q.HY += x;
    if (q.out != nullptr) q.out += x;
    if (w == columns) {
      compute(q, kernels);
    } else {
      compute_copied(q, columns, kernels);
    }
    if (block.squares != nullptr) std::copy(q.squares, q.squares + columns, block.squares + x);
  }

  void compute(const SweepBlock<T>& q, const SweepKernels<T>& kernels) const {
    if (q.HY == nullptr) return kernels.sweep(q);
    for (const UpdateSlot<T>& slot : call().given) kernels.update_given(q, slot);
  }

  // On rows of w numbers without gaps.
  void compute_copied(const SweepBlock<T>& outer, int64_t columns, const SweepKernels<T>& kernels) const {
    SweepBlock<T> q = outer;
    const int64_t w = q.w, S = call().S, P = call().P;
    T* const own = thread_memory<T>(1, S * w);
    pad(outer.theta, outer.ld, own, S, columns, w);
    q.theta = own, q.ld = w;
    if (outer.Y != nullptr) q.Y = own;
    T* const other = outer.HY != nullptr || outer.out != nullptr ? thread_memory<T>(2, P * w) : nullptr;
    if (outer.HY != nullptr) {
      pad(outer.HY, outer.ld_given, other, P, columns, w);
      q.HY = other, q.ld_given = w;
    }
    if (outer.out != nullptr) q.out = other, q.ld_out = w;
    compute(q, kernels);
    if (outer.out != nullptr) {
      unpad(q.out, w, outer.out, outer.ld_out, P, columns);
    } else {
      unpad(q.Y, w, outer.Y, outer.ld, S, columns);
    }
  }

  void run_all() const {
    const int64_t work = column_work(call().program, call().S), k = call().k;
    const int64_t width = block_width<T>(call().program.scratch_rows, work, k), blocks = (k + width - 1) / width;
    torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) run(b * width, width);
    });
  }
};

Tensor tangent_product_cpu(const Tensor& Y,                     // [P, k]
                           const std::vector<Tensor> operands,  // of the nodes
                           const std::vector<int64_t> values, const std::vector<int64_t> nodes,
                           const std::vector<double> factors) {
  const char* op = "tangent_product";
  check_sweep(op, reads("Y", Y), std::nullopt, operands, {});
  const int64_t P = Y.size(0), k = Y.size(1);
  const Tensor out = new_empty(Y, {P, k});
  use_huge_pages(out);
  dispatch_floating(Y, [&](auto zero) {
    using T = decltype(zero);
    const SweepLists<T> lists = sweep_lists<T>(op, Y, operands, values, nodes, factors);
    const ProgramBuilder<T> builder(op, P, lists);
    const UpdateList<T> slots = product_list(builder.program(), P);
    if (out.numel() == 0) return;
    std::vector<std::vector<T>> keep;
    const SweepCall<T> call{.program = builder.program(),
                            .slots = slots,
                            .given = {},
                            .packed = pack(builder.program(), k, P, keep),
                            .S = P,
                            .P = P,
                            .k = k};
    Sweep<T>{{.call = &call, .theta = data<T>(Y), .ld = row_stride(Y), .out = mutable_data<T>(out), .ld_out = k}}
        .run_all();
  });
  return out;
}

Tensor tangent_update_cpu(Tensor& Y,                           // [S, k]
                          const std::optional<Tensor>& HY,     // [P, k]
                          const std::vector<Tensor> operands,  // of the nodes
                          const std::vector<int64_t> values, const std::vector<int64_t> nodes,
                          const std::vector<double> factors, const std::vector<Tensor> vectors,
                          const std::vector<int64_t> slots, const std::vector<double> coefficients) {
  const char* op = "tangent_update_";
  check_sweep(op, writes("Y", Y), HY, operands, vectors);
  const int64_t S = Y.size(0), k = Y.size(1);
  const Tensor squares = new_empty(Y, {1, k});
  dispatch_floating(Y, [&](auto zero) {
    using T = decltype(zero);
    std::vector<UpdateSlot<T>> own = read_slots<T>(S, update_lists<T>(Y, vectors, slots, coefficients));
    const SweepLists<T> lists = sweep_lists<T>(op, Y, operands, values, nodes, factors);
    const ProgramBuilder<T> builder(op, S, lists);
    const TangentProgram<T>& program = builder.program();
    if (HY) check_given(*HY, Y, own, program.count);
    const UpdateList<T> list = HY ? UpdateList<T>{} : update_list(own, program);
    if (k == 0) return;
    std::vector<std::vector<T>> keep;
    const SweepCall<T> call{.program = program,
                            .slots = list,
                            .given = std::move(own),
                            .packed = pack(program, k, S, keep),
                            .S = S,
                            .P = HY ? HY->size(0) : 0,
                            .k = k};
    Sweep<T>{{.call = &call,
              .theta = data<T>(Y),
              .Y = mutable_data<T>(Y),
              .ld = row_stride(Y),
              .HY = HY ? data<T>(*HY) : nullptr,
              .ld_given = HY ? row_stride(*HY) : 0,
              .squares = mutable_data<T>(squares)}}
        .run_all();
  });
  return squares;
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CPU, m) {
  m.impl("tangent_product", TORCH_BOX(&chaos_ext::tangent_product_cpu));
  m.impl("tangent_update_", TORCH_BOX(&chaos_ext::tangent_update_cpu));
}
