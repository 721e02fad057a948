// hessian_block_ on the CPU. Formula and cost: block.h. The arithmetic (block_kernel.inl) is compiled for AVX-512, AVX2
// and the baseline, and chosen at run time; this file repacks the operands and hands out the work.
//
// Parallel over (j, units i) for a layer with itself, over (i, columns) and (k, l) for two layers; no two items write
// the same entry, and rounding does not depend on the number of threads.
//
// Two regimes, see BlockKernels. Batch <= 16: the time goes into writing P^2 numbers, so each entry is computed for
// each of its places (bit for bit equal) and rows are written in long runs, around the caches when H exceeds them.
// Larger batches: each entry is computed once and written to all its places.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../common/cpu_target.h"
#include "block_plan.h"

namespace chaos_ext {
namespace {

#define CE_FILE "../hessian/block_kernel.inl"
#include "../common/foreach_target.inl"

constexpr int64_t kWriteBoundBatch = 16;
constexpr int64_t kStreamBytes = int64_t{16} << 20;  // beyond the caches
constexpr int64_t kItemWork = 1 << 16;               // multiply-adds and writes a thread should have at least

const BlockKernels<float>& kernels_for(float) { return CE_CHOOSE(float, kernels); }
const BlockKernels<double>& kernels_for(double) { return CE_CHOOSE(double, kernels); }

// Streaming stores become visible to the thread that collects the work.
void finish_streaming(bool stream) {
#if CE_X86_TARGETS
  if (stream) _mm_sfence();
#endif
}

template <typename T>
void run(BlockRange<T> range, const BlockPlan<T>& plan, int64_t items, int64_t item_work) {
  const int64_t grain = std::max<int64_t>(1, kItemWork / std::max<int64_t>(1, item_work));
  torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    range(plan, begin, end);
    finish_streaming(plan.stream);
  });
}

// in [A, B, C] -> out [C, A, B].
template <typename T>
std::vector<T> last_to_front(const T* in, int64_t A, int64_t B, int64_t C) {
  std::vector<T> out(in == nullptr ? 0 : A * B * C);
  if (in == nullptr) return out;
  torch::stable::parallel_for(0, C, std::max<int64_t>(1, kItemWork / std::max<int64_t>(1, A * B)),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t c = begin; c < end; ++c) {
                                  for (int64_t ab = 0; ab < A * B; ++ab) out[c * A * B + ab] = in[ab * C + c];
                                }
                              });
  return out;
}

// a [N, I] -> [I + 1, N] with a last row of ones.
template <typename T>
std::vector<T> with_bias_row(const T* a, int64_t N, int64_t I) {
  std::vector<T> out = last_to_front(a, 1, N, I);
  out.resize((I + 1) * N, T(1));
  return out;
}

template <typename T>
void same_block(BlockPlan<T> plan, const BlockWay<T>& way) {
  const BlockProblem<T>& q = plan.q;
  const int64_t O = q.O_s, N = q.N, I = q.I_s;
  std::vector<T> C(O * O * N);
  for (int64_t i = 0; i < O; ++i) {
    for (int64_t k = i; k < O; ++k) {
      for (int64_t n = 0; n < N; ++n) C[(i * O + k) * N + n] = C[(k * O + i) * N + n] = q.K[(i * N + n) * O + k];
    }
  }
  plan.C = C.data();
  const int64_t rows = (q.row.has_weight() ? I : 0) + (q.row.has_bias() ? 1 : 0);
  run(way.same, plan, rows * groups(O, kUnitGroup), std::min(O, kUnitGroup) * O * (I + 1) * (N + 8));
}

// group: columns of one item.
template <typename T>
void cross_block(BlockPlan<T> plan, const BlockWay<T>& way, int64_t group) {
  const BlockProblem<T>& q = plan.q;
  const std::vector<T> rows_s = with_bias_row(q.a_s, q.N, q.I_s);
  plan.rows_s = rows_s.data();
  const int64_t weights = q.col.has_weight() ? q.O_t * q.I_t : 0, biases = q.col.has_bias() ? q.O_t : 0;
  const int64_t N_work = q.N + 8;
  run(way.direct, plan, q.O_s * (groups(weights, group) + groups(biases, group)),
      (q.I_s + 1) * std::min(group, weights + biases) * N_work);
  if (way.mirrored == nullptr) return;
  const std::vector<T> K_t = last_to_front(q.K, q.O_s, q.N, q.O_t), J_t = last_to_front(q.J, q.O_s, q.N, q.I_t);
  const std::vector<T> delta_t = last_to_front(q.delta_t, 1, q.N, q.O_t);
  const std::vector<T> rows_t = q.a_t == nullptr ? std::vector<T>() : with_bias_row(q.a_t, q.N, q.I_t);
  plan.K_t = K_t.data();
  plan.J_t = J_t.data();
  plan.delta_t = delta_t.data();
  plan.rows_t = rows_t.data();
  run(way.mirrored, plan, weights + biases, q.O_s * (q.I_s + 1) * N_work);
}

void hessian_block_cpu(Tensor& H,                             // [P, P], row stride >= P
                       const Tensor& a_s,                     // [N, I_s]
                       const std::optional<Tensor>& K,        // [O_s, N, O_t]
                       const std::optional<Tensor>& a_t,      // [N, I_t]
                       const std::optional<Tensor>& delta_t,  // [N, O_t]
                       const std::optional<Tensor>& J,        // [O_s, N, I_t]
                       int64_t row_w, int64_t row_b, int64_t col_w, int64_t col_b, bool same) {
  const ParameterSpan row{row_w, row_b}, col{col_w, col_b};
  const BlockSizes d = check_block(H, a_s, K, a_t, delta_t, J, row, col, same);
  if (is_empty_block(d, row, col)) return;
  dispatch_floating(H, [&](auto zero) {
    using T = decltype(zero);
    BlockPlan<T> plan{};
    plan.q = block_problem<T>(H, a_s, K, a_t, delta_t, J, d, row, col);
    const bool by_rows = d.N <= kWriteBoundBatch;
    const BlockWay<T>& way = by_rows ? kernels_for(T{}).by_rows : kernels_for(T{}).once;
    plan.stream = by_rows && H.size(0) * H.stride(0) * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
    if (same) {
      same_block(plan, way);
    } else {
      cross_block(plan, way, by_rows ? kRowGroup : kOnceGroup);
    }
  });
}

}  // namespace
}  // namespace chaos_ext

STABLE_TORCH_LIBRARY_IMPL(chaos_ext, CPU, m) { m.impl("hessian_block_", TORCH_BOX(&chaos_ext::hessian_block_cpu)); }
