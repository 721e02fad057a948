// The arithmetic of hessian_block_ on the CPU; compiled once per instruction set and dtype, with the CE_ macros of
// ../common/foreach_target.inl.
//
// Everything is one primitive, a register tile of rows x columns accumulated over the batch:
//
//     out[r][x] = sum_n c[r][n] w[n][x]          (multiply-adds in the order of n, in every code path)
//
// w is packed in panels of CE_PANEL_VECTORS vectors: [panel][n][column], padded with zeros. Because the order of the
// sum is always the same and a product does not depend on the order of its factors, an entry computed from either side
// of the diagonal has the same bits, whatever tile it fell into and however many threads there are.
//
// block_tiles.inl holds the tile and the packing, block_rows.inl and block_once.inl the two ways to fill H.

#define CE_INLINE inline __attribute__((always_inline))

using T = CE_SCALAR;
typedef T Vec __attribute__((vector_size(CE_VECTOR_BYTES)));
typedef T Loose __attribute__((vector_size(CE_VECTOR_BYTES), aligned(sizeof(T)), may_alias));

constexpr int64_t kLanes = CE_VECTOR_BYTES / sizeof(T);
constexpr int64_t kPanel = CE_PANEL_VECTORS * kLanes;  // columns of a full panel
constexpr int64_t kTileRows = 6;

// Rows of an output: row r starts at base + r stride.
struct Rows {
  T* base;
  int64_t stride;
};

// Columns of the panel that starts at column x0, padded to whole vectors.
inline int64_t panel_columns(int64_t width, int64_t x0) {
  return std::min(kPanel, (width - x0 + kLanes - 1) / kLanes * kLanes);
}

// Numbers in all panels of a packed w [N, width].
inline int64_t packed_size(int64_t N, int64_t width) { return N * ((width + kLanes - 1) / kLanes * kLanes); }

// Memory that begins at a multiple of a vector, so that no load of a packed row crosses a cache line.
class Aligned {
 public:
  explicit Aligned(int64_t numbers) : memory_(numbers + kLanes) {
    const auto past = reinterpret_cast<uintptr_t>(memory_.data()) % CE_VECTOR_BYTES;
    data_ = memory_.data() + (CE_VECTOR_BYTES - past) % CE_VECTOR_BYTES / sizeof(T);
  }

  Aligned(const Aligned&) = delete;

  T* data() const { return data_; }

 private:
  std::vector<T> memory_;
  T* data_;
};

#include "block_tiles.inl"
//
#include "block_once.inl"
#include "block_rows.inl"

const BlockKernels<T> kernels{{same_by_rows, direct_by_rows, mirrored_by_rows}, {same_once, direct_once, nullptr}};

#undef CE_INLINE
