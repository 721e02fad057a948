// The loops of norm_tangent_ and norm_tangent_backward_ over one group and one panel of columns; compiled once per
// instruction set and dtype, with the CE_ macros of ../common/foreach_target.inl.

#define CE_INLINE inline __attribute__((always_inline))

using T = CE_SCALAR;
template <int kBytes>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kBytes)));
};
template <>
struct VectorOf<sizeof(T)> {
  using Type = T;
};
typedef VectorOf<CE_VECTOR_BYTES>::Type Vec;

constexpr int64_t kLanes = CE_VECTOR_BYTES / sizeof(T);
constexpr int64_t kRun = 128;            // entries that are summed before they join the total
constexpr int kWide = CE_PANEL_VECTORS;  // five sums of this many vectors fit into the registers

template <typename V>
CE_INLINE V load(const T* from) {
  V value;
  std::memcpy(&value, from, sizeof(V));
  return value;
}

template <typename V>
CE_INLINE void store(T* to, V value) {
  std::memcpy(to, &value, sizeof(V));
}

// Means of delta and xh delta over group g.
CE_INLINE NormGroup<T> group_of(const NormProblem<T>& q, int64_t g, bool backward) {
  constexpr int64_t kApart = 8;  // sums that do not wait for each other
  double means[kApart] = {}, means_h[kApart] = {};
  for (int64_t b = 0; backward && b < q.s.B; ++b) {
    const T *delta = q.delta + q.s.segment(b, g), *xh = q.xh + q.s.segment(b, g);
    int64_t m = 0;
    for (; m + kApart <= q.s.M; m += kApart) {
      for (int64_t i = 0; i < kApart; ++i) {
        means[i] += delta[m + i];
        means_h[i] += static_cast<double>(xh[m + i]) * delta[m + i];
      }
    }
    for (; m < q.s.M; ++m) {
      means[0] += delta[m];
      means_h[0] += static_cast<double>(xh[m]) * delta[m];
    }
  }
  double mean = 0, mean_h = 0;
  for (int64_t i = 0; i < kApart; ++i) mean += means[i], mean_h += means_h[i];
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

// Sums over the group of W V's of columns, at x, x + step, ..., run by run: where d has a large mean, sums that end
// near zero pass through large values.
template <typename V, int W, bool kBackward, bool kD, bool kE>
CE_INLINE void group_sums(const NormProblem<T>& q, const NormGroup<T>& own, int64_t g, int64_t x, int64_t step,
                          NormSums<V>* sums) {
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
          const V d = load<V>(q.d + row + w * step);
          part[w].d += d;
          part[w].d_h += xh * d;
          if constexpr (kBackward) part[w].d_p += p * d;
        }
        if constexpr (kE) {
          const V e = load<V>(q.ddelta + row + w * step);
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
CE_INLINE void columns(const NormProblem<T>& q, const NormGroup<T>& own, int64_t g, int64_t x, int64_t step = kLanes) {
  const NormShape& s = q.s;
  NormSums<V> sums[W];
  group_sums<V, W, kBackward, kD, kE>(q, own, g, x, step, sums);
  NormCoefficients<T, V> c[W];
  for (int w = 0; w < W; ++w) {
    const int64_t at = g * s.k + x + w * step;
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
        if constexpr (kD) value += c[w].of_d * load<V>(q.d + row + w * step);
        if constexpr (kE) value += c[w].of_e * load<V>(q.ddelta + row + w * step);
        store<V>(q.out + row + w * step, value);
      }
    }
  }
}

template <typename V>
CE_INLINE T total(const V& value) {
  if constexpr (sizeof(V) == sizeof(T)) {
    return value;
  } else {
    T sum = 0;
    for (int64_t i = 0; i < static_cast<int64_t>(sizeof(V) / sizeof(T)); ++i) sum += value[i];
    return sum;
  }
}

// Of one column, entries from i on, a vector or a number of them: added to the sums, and to that of p.
template <typename V, bool kBackward, bool kD, bool kE>
CE_INLINE void add_entries(const NormProblem<T>& q, const NormGroup<T>& own, int64_t i, NormSums<V>& sums, V& p_sum) {
  const V xh = load<V>(q.xh + i);
  if constexpr (kD) {
    const V d = load<V>(q.d + i);
    sums.d += d;
    sums.d_h += xh * d;
    if constexpr (kBackward) {
      const V p = own.r * (load<V>(q.delta + i) - own.mean - xh * own.q);
      sums.d_p += p * d;
      p_sum += p;
    }
  }
  if constexpr (kE) {
    const V e = load<V>(q.ddelta + i);
    sums.e += e;
    sums.e_h += xh * e;
  }
}

// group_sums of a single column: its entries are the lanes.
template <bool kBackward, bool kD, bool kE>
CE_INLINE NormSums<T> sums_of_one(const NormProblem<T>& q, const NormGroup<T>& own, int64_t g) {
  NormSums<T> sums{}, lost{};
  double p_total = 0;
  const int64_t runs = (q.s.M + kRun - 1) / kRun;
  for (int64_t run = 0; run < q.s.B * runs; ++run) {
    int64_t i = q.s.segment(run / runs, g) + run % runs * kRun;
    const int64_t end = std::min(q.s.segment(run / runs, g) + q.s.M, i + kRun);
    NormSums<Vec> part{};
    NormSums<T> rest{};
    Vec p_part{};
    T p_rest = 0;
    for (; i + kLanes <= end; i += kLanes) add_entries<Vec, kBackward, kD, kE>(q, own, i, part, p_part);
    for (; i < end; ++i) add_entries<T, kBackward, kD, kE>(q, own, i, rest, p_rest);
    p_total += total(p_part) + p_rest;
    add_exactly(sums.d, total(part.d) + rest.d, lost.d);
    add_exactly(sums.d_h, total(part.d_h) + rest.d_h, lost.d_h);
    add_exactly(sums.d_p, total(part.d_p) + rest.d_p, lost.d_p);
    add_exactly(sums.e, total(part.e) + rest.e, lost.e);
    add_exactly(sums.e_h, total(part.e_h) + rest.e_h, lost.e_h);
  }
  sums.d_p -= sums.d * own.leak(p_total);
  return sums;
}

template <typename V, bool kBackward, bool kD, bool kE>
CE_INLINE void write_entries(const NormProblem<T>& q, const NormGroup<T>& own, const NormCoefficients<T, T>& c,
                             int64_t i) {
  const V xh = load<V>(q.xh + i);
  V value = c.constant + xh * c.of_h;
  if constexpr (kBackward) value += own.r * (load<V>(q.delta + i) - own.mean - xh * own.q) * c.of_p;
  if constexpr (kD) value += c.of_d * load<V>(q.d + i);
  if constexpr (kE) value += c.of_e * load<V>(q.ddelta + i);
  store<V>(q.out + i, value);
}

template <bool kBackward, bool kD, bool kE>
CE_INLINE void one_column(const NormProblem<T>& q, const NormGroup<T>& own, int64_t g) {
  const NormSums<T> sums = sums_of_one<kBackward, kD, kE>(q, own, g);
  const T dgamma = q.dgamma == nullptr ? T(0) : q.dgamma[g];
  NormCoefficients<T, T> c;
  if constexpr (kBackward) {
    c = backward_coefficients<T, T>(own, sums, dgamma);
    q.dweight[g] = sums.e_h + sums.d_p;
    q.dbias[g] = sums.e;
  } else {
    c = forward_coefficients<T, T>(own, sums, dgamma, q.dbeta == nullptr ? T(0) : q.dbeta[g]);
  }
  for (int64_t b = 0; b < q.s.B; ++b) {
    int64_t i = q.s.segment(b, g);
    const int64_t end = i + q.s.M;
    for (; i + kLanes <= end; i += kLanes) write_entries<Vec, kBackward, kD, kE>(q, own, c, i);
    for (; i < end; ++i) write_entries<T, kBackward, kD, kE>(q, own, c, i);
  }
}

// Columns x0 to x1, fewer than a vector, in two shorter vectors that may overlap: a column is computed alike in both.
template <int kBytes, bool kBackward, bool kD, bool kE>
CE_INLINE void few_columns(const NormProblem<T>& q, const NormGroup<T>& own, int64_t g, int64_t x0, int64_t x1) {
  using V = typename VectorOf<kBytes>::Type;
  constexpr int64_t kOwn = kBytes / sizeof(T);
  if (x1 - x0 == kOwn) return columns<V, 1, kBackward, kD, kE>(q, own, g, x0);
  if (x1 - x0 > kOwn) return columns<V, 2, kBackward, kD, kE>(q, own, g, x0, x1 - x0 - kOwn);
  if constexpr (kOwn > 1) few_columns<kBytes / 2, kBackward, kD, kE>(q, own, g, x0, x1);
}

template <bool kBackward, bool kD, bool kE>
CE_INLINE void panel(const NormProblem<T>& q, int64_t g, int64_t x0, int64_t x1) {
  const NormGroup<T> own = group_of(q, g, kBackward);
  if (q.s.k == 1) return one_column<kBackward, kD, kE>(q, own, g);
  if (x1 - x0 < kLanes) return few_columns<CE_VECTOR_BYTES / 2, kBackward, kD, kE>(q, own, g, x0, x1);
  int64_t x = x0;
  for (; x + kWide * kLanes <= x1; x += kWide * kLanes) columns<Vec, kWide, kBackward, kD, kE>(q, own, g, x);
  for (; x + 2 * kLanes < x1; x += 2 * kLanes) columns<Vec, 2, kBackward, kD, kE>(q, own, g, x);
  const int64_t left = x1 - x;
  if (left > kLanes) return columns<Vec, 2, kBackward, kD, kE>(q, own, g, x, left - kLanes);
  if (left > 0) columns<Vec, 1, kBackward, kD, kE>(q, own, g, x1 - kLanes);
}

void group_panel(const NormProblem<T>& q, int64_t g, int64_t x0, int64_t x1) {
  const bool d = q.d != nullptr, e = q.ddelta != nullptr;
  if (q.delta == nullptr) return d ? panel<false, true, false>(q, g, x0, x1) : panel<false, false, false>(q, g, x0, x1);
  if (d && e) return panel<true, true, true>(q, g, x0, x1);
  if (d) return panel<true, true, false>(q, g, x0, x1);
  if (e) return panel<true, false, true>(q, g, x0, x1);
  panel<true, false, false>(q, g, x0, x1);
}

const NormKernels<T> kernels{group_panel, kWide * kLanes, kLanes};

#undef CE_INLINE
