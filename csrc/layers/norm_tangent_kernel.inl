// The loops of norm_tangent_ and norm_tangent_backward_ over one group and one panel of columns; compiled once per
// instruction set and dtype, with the CE_ macros of ../common/foreach_target.inl.

#define CE_INLINE inline __attribute__((always_inline))

using T = CE_SCALAR;
typedef T Vec __attribute__((vector_size(CE_VECTOR_BYTES)));
typedef T Loose __attribute__((vector_size(CE_VECTOR_BYTES), aligned(sizeof(T)), may_alias));

constexpr int64_t kLanes = CE_VECTOR_BYTES / sizeof(T);
constexpr int64_t kRun = 128;            // entries that are summed before they join the total
constexpr int kWide = CE_PANEL_VECTORS;  // five sums of this many vectors fit into the registers

template <typename V>
CE_INLINE V load(const T* from) {
  if constexpr (sizeof(V) == sizeof(T)) {
    return *from;
  } else {
    return *reinterpret_cast<const Loose*>(from);
  }
}

template <typename V>
CE_INLINE void store(T* to, V value) {
  if constexpr (sizeof(V) == sizeof(T)) {
    *to = value;
  } else {
    *reinterpret_cast<Loose*>(to) = value;
  }
}

// Means of delta and xh delta over group g.
CE_INLINE NormGroup<T> group_of(const NormProblem<T>& q, int64_t g, bool backward) {
  double mean = 0, mean_h = 0;
  for (int64_t b = 0; backward && b < q.s.B; ++b) {
    const T *delta = q.delta + q.s.segment(b, g), *xh = q.xh + q.s.segment(b, g);
    for (int64_t m = 0; m < q.s.M; ++m) {
      mean += delta[m];
      mean_h += static_cast<double>(xh[m]) * delta[m];
    }
  }
  const double n = static_cast<double>(q.s.count());
  return norm_group(q, g, static_cast<T>(mean / n), static_cast<T>(mean_h / n));
}

// sum += part, with what rounding takes away kept for the next part (Kahan).
template <typename V>
CE_INLINE void add_exactly(V& sum, const V& part, V& lost) {
  const V more = part - lost, next = sum + more;
  lost = (next - sum) - more;
  sum = next;
}

// Sums over the group of W V's of columns from x on, run by run: where d has a large mean, sums that end near zero pass
// through large values.
template <typename V, int W, bool kBackward, bool kD, bool kE>
CE_INLINE void group_sums(const NormProblem<T>& q, const NormGroup<T>& own, int64_t g, int64_t x, NormSums<V>* sums) {
  const NormShape& s = q.s;
  NormSums<V> lost[W] = {};
  double p_total = 0;
  for (int w = 0; w < W; ++w) sums[w] = NormSums<V>{};
  const int64_t runs = (s.M + kRun - 1) / kRun;
  for (int64_t run = 0; run < s.B * runs; ++run) {
    const int64_t at = s.segment(run / runs, g), first = run % runs * kRun;
    NormSums<V> part[W] = {};
    for (int64_t m = first; m < std::min(s.M, first + kRun); ++m) {
      const T xh = q.xh[at + m], p = kBackward && kD ? own.p(q.delta[at + m], xh) : T(0);
      const int64_t row = (at + m) * s.k + x;
      p_total += p;
      for (int w = 0; w < W; ++w) {
        if constexpr (kD) {
          const V d = load<V>(q.d + row + w * kLanes);
          part[w].d += d;
          part[w].d_h += xh * d;
          if constexpr (kBackward) part[w].d_p += p * d;
        }
        if constexpr (kE) {
          const V e = load<V>(q.ddelta + row + w * kLanes);
          part[w].e += e;
          part[w].e_h += xh * e;
        }
      }
    }
    for (int w = 0; w < W; ++w) {
      add_exactly(sums[w].d, part[w].d, lost[w].d);
      add_exactly(sums[w].d_h, part[w].d_h, lost[w].d_h);
      add_exactly(sums[w].d_p, part[w].d_p, lost[w].d_p);
      add_exactly(sums[w].e, part[w].e, lost[w].e);
      add_exactly(sums[w].e_h, part[w].e_h, lost[w].e_h);
    }
  }
  for (int w = 0; w < W; ++w) sums[w].d_p -= sums[w].d * own.leak(p_total);
}

template <typename V, int W, bool kBackward, bool kD, bool kE>
CE_INLINE void columns(const NormProblem<T>& q, const NormGroup<T>& own, int64_t g, int64_t x) {
  const NormShape& s = q.s;
  NormSums<V> sums[W];
  group_sums<V, W, kBackward, kD, kE>(q, own, g, x, sums);
  NormCoefficients<T, V> c[W];
  for (int w = 0; w < W; ++w) {
    const int64_t at = g * s.k + x + w * kLanes;
    const V dgamma = q.dgamma == nullptr ? V{} : load<V>(q.dgamma + at);
    if constexpr (kBackward) {
      c[w] = backward_coefficients<T, V>(own, sums[w], dgamma);
      store<V>(q.dweight + at, sums[w].e_h + sums[w].d_p);
      store<V>(q.dbias + at, sums[w].e);
    } else {
      c[w] = forward_coefficients<T, V>(own, sums[w], dgamma, q.dbeta == nullptr ? V{} : load<V>(q.dbeta + at));
    }
  }
  for (int64_t b = 0; b < s.B; ++b) {
    const int64_t at = s.segment(b, g);
    for (int64_t m = 0; m < s.M; ++m) {
      const T xh = q.xh[at + m], p = kBackward ? own.p(q.delta[at + m], xh) : T(0);
      const int64_t row = (at + m) * s.k + x;
      for (int w = 0; w < W; ++w) {
        V value = c[w].constant + xh * c[w].of_h;
        if constexpr (kBackward) value += p * c[w].of_p;
        if constexpr (kD) value += c[w].of_d * load<V>(q.d + row + w * kLanes);
        if constexpr (kE) value += c[w].of_e * load<V>(q.ddelta + row + w * kLanes);
        store<V>(q.out + row + w * kLanes, value);
      }
    }
  }
}

template <bool kBackward, bool kD, bool kE>
CE_INLINE void panel(const NormProblem<T>& q, int64_t g, int64_t x0, int64_t x1) {
  const NormGroup<T> own = group_of(q, g, kBackward);
  int64_t x = x0;
  for (; x + kWide * kLanes <= x1; x += kWide * kLanes) columns<Vec, kWide, kBackward, kD, kE>(q, own, g, x);
  for (; x + kLanes <= x1; x += kLanes) columns<Vec, 1, kBackward, kD, kE>(q, own, g, x);
  for (; x < x1; ++x) columns<T, 1, kBackward, kD, kE>(q, own, g, x);
}

void group_panel(const NormProblem<T>& q, int64_t g, int64_t x0, int64_t x1) {
  const bool d = q.d != nullptr, e = q.ddelta != nullptr;
  if (q.delta == nullptr) return d ? panel<false, true, false>(q, g, x0, x1) : panel<false, false, false>(q, g, x0, x1);
  if (d && e) return panel<true, true, true>(q, g, x0, x1);
  if (d) return panel<true, true, false>(q, g, x0, x1);
  if (e) return panel<true, false, true>(q, g, x0, x1);
  panel<true, false, false>(q, g, x0, x1);
}

const NormKernels<T> kernels{group_panel, kWide * kLanes};

#undef CE_INLINE
