// Normalisation as a node of a tangent sweep, one group at a time, for any kind of column: a vector of them (CPU), one
// (CPU), or a thread's own (CUDA). With means over a group, xh = r (x - mean x) and z = gamma xh + beta:
//   dxh = r (dx - mean dx - xh mean(xh dx)),   dz = gamma dxh + dgamma xh + dbeta
// and back, with u = gamma delta, du = gamma d(delta) + dgamma delta, q = mean(xh u), dq = mean(dxh u + xh du):
//   delta_x = r (u - mean u - xh q)
//   d(delta_x) = - r mean(xh dx) delta_x + r (du - mean du - dxh q - xh dq)
//   (H y)_gamma = sum xh d(delta) + dxh delta,   (H y)_beta = sum d(delta).
// Where mean and variance are constants (alpha = 0) there are no means: dxh = r dx, d(delta_x) = r du.
//
// Sums may be of millions of numbers: runs of kAddends are added first, or rounding would grow with the group.
//
// Columns: value(row) and put(row, v) of the scratch, theta(row) of the rows of y, number(p) of an operand. A group may
// stand for several neighbours with one entry each in a row of them, whose numbers are then vectors, too. Included
// inside a namespace, so that the CPU's are compiled for the instruction set around them.
//
// The loops are unrolled twice on CUDA; by its own choice nvcc takes 128 registers, all that 512 threads can have.

constexpr int kAddends = 128;

template <typename V>
struct RunSum {
  V all{}, run{};

  CHAOS_EXT_HD_MEMBER void close() { all += run, run = V{}; }
};

// Calls body(entry, parameter) for the entries of a group: x is [I, O, R], the group all of it at one place of O, and
// gamma the same for L neighbours and repeated every C of these; and close() after every run of them.
template <typename T, typename Body, typename Close>
CHAOS_EXT_HD void for_group(const TangentNode<T>& n, int64_t group, const Body& body, const Close& close) {
  int left = kAddends;
  for (int64_t b = 0; b < n.I; ++b) {
    const int64_t start = (b * n.O + group) * n.R;
    int64_t c = start / n.L % n.C, l = start % n.L;
#pragma unroll 2
    for (int64_t m = 0; m < n.R; ++m) {
      body(start + m, c);
      if (--left == 0) close(), left = kAddends;
      if (++l < n.L) continue;
      l = 0;
      if (++c == n.C) c = 0;
    }
  }
  close();
}

template <typename T, typename Body>
CHAOS_EXT_HD void for_group(const TangentNode<T>& n, int64_t group, const Body& body) {
  for_group(n, group, body, []() CHAOS_EXT_HD_LAMBDA {});
}

// The same, for the entries with one parameter.
template <typename T, typename Body, typename Close>
CHAOS_EXT_HD void for_parameter(const TangentNode<T>& n, int64_t c, const Body& body, const Close& close) {
  int left = kAddends;
  for (int64_t start = c * n.L; start < n.numbers(); start += n.C * n.L) {
#pragma unroll 2
    for (int64_t l = 0; l < n.L; ++l) {
      body(start + l);
      if (--left == 0) close(), left = kAddends;
    }
  }
  close();
}

// d of z in one group. Keeps dxh, and mean(xh dx).
template <typename V, typename T, typename Columns>
CHAOS_EXT_HD void norm_forward(const Columns& at, const TangentNode<T>& n, int64_t group) {
  const auto r = at.number(n.r + group);
  const T share = n.alpha / static_cast<T>(n.I * n.R);
  V mean{}, inner{};
  if (n.in[0].has() && n.alpha != T(0)) {
    RunSum<V> plain{}, weighted{};
    for_group(
        n, group,
        [&](int64_t i, int64_t) CHAOS_EXT_HD_LAMBDA {
          const V d = at.value(n.in[0].d + i);
          plain.run += d;
          weighted.run += at.number(n.a + i) * d;
        },
        [&]() CHAOS_EXT_HD_LAMBDA { plain.close(), weighted.close(); });
    mean = share * plain.all, inner = share * weighted.all;
  }
  if (n.in[0].has()) at.put(n.own + n.numbers() + group, inner);
  for_group(n, group, [&](int64_t i, int64_t c) CHAOS_EXT_HD_LAMBDA {
    V z{};
    if (n.in[0].has()) {
      const V dxh = r * (at.value(n.in[0].d + i) - mean - at.number(n.a + i) * inner);
      at.put(n.own + i, dxh);
      z = n.W == nullptr ? dxh : at.number(n.W + c) * dxh;
    }
    if (n.row_w >= 0) z += at.number(n.a + i) * at.theta(n.row_w + c);
    if (n.row_b >= 0) z += at.theta(n.row_b + c);
    at.put(n.out.d + i, z);
  });
}

// d(delta_x) in one group, before any row of theta is overwritten; the input has a tangent.
template <typename V, typename T, typename Columns>
CHAOS_EXT_HD void norm_to_input(const Columns& at, const TangentNode<T>& n, int64_t group) {
  using Number = decltype(at.number(n.a));
  const auto r = at.number(n.r + group);
  const T share = n.alpha / static_cast<T>(n.I * n.R);
  const auto scaled = [&](int64_t i, int64_t c) CHAOS_EXT_HD_LAMBDA {
    return n.W == nullptr ? at.number(n.delta + i) : at.number(n.W + c) * at.number(n.delta + i);
  };
  const auto scaled_tangent = [&](int64_t i, int64_t c) CHAOS_EXT_HD_LAMBDA {
    const V e = at.value(n.out.e + i);
    V du = n.W == nullptr ? e : at.number(n.W + c) * e;
    if (n.row_w >= 0) du += at.number(n.delta + i) * at.theta(n.row_w + c);
    return du;
  };
  Number mean{}, q{};
  V dmean{}, dq{};
  if (n.alpha != T(0)) {
    RunSum<Number> plain{}, weighted{};
    RunSum<V> dplain{}, dweighted{};
    for_group(
        n, group,
        [&](int64_t i, int64_t c) CHAOS_EXT_HD_LAMBDA {
          const Number u = scaled(i, c);
          const V du = scaled_tangent(i, c);
          plain.run += u;
          weighted.run += at.number(n.a + i) * u;
          dplain.run += du;
          dweighted.run += u * at.value(n.own + i) + at.number(n.a + i) * du;
        },
        [&]() CHAOS_EXT_HD_LAMBDA { plain.close(), weighted.close(), dplain.close(), dweighted.close(); });
    mean = share * plain.all, q = share * weighted.all;
    dmean = share * dplain.all, dq = share * dweighted.all;
  }
  const V inner = at.value(n.own + n.numbers() + group);
  for_group(n, group, [&](int64_t i, int64_t c) CHAOS_EXT_HD_LAMBDA {
    const Number back = r * (scaled(i, c) - mean - at.number(n.a + i) * q);
    V e = r * (scaled_tangent(i, c) - dmean - q * at.value(n.own + i) - at.number(n.a + i) * dq - back * inner);
    if (n.adds[0]) e += at.value(n.in[0].e + i);
    at.put(n.in[0].e + i, e);
  });
}

// (H y)_gamma and (H y)_beta of one parameter.
template <typename V, typename T, typename Columns>
CHAOS_EXT_HD void norm_to_theta(const Columns& at, const TangentNode<T>& n, int64_t c, V& gamma, V& beta) {
  RunSum<V> plain{}, weighted{};
  for_parameter(
      n, c,
      [&](int64_t i) CHAOS_EXT_HD_LAMBDA {
        const V e = at.value(n.out.e + i);
        plain.run += e;
        weighted.run += at.number(n.a + i) * e;
        if (n.in[0].has()) weighted.run += at.number(n.delta + i) * at.value(n.own + i);
      },
      [&]() CHAOS_EXT_HD_LAMBDA { plain.close(), weighted.close(); });
  gamma = weighted.all, beta = plain.all;
}
