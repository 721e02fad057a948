// Normalisation as a node of a tangent sweep, one group at a time, for any kind of column: a vector of them (CPU), one
// (CPU), or a thread's own (CUDA). With means over a group, xh = r (x - mean x) and z = gamma xh + beta:
//   dxh = r (dx - mean dx - xh mean(xh dx)),   dz = gamma dxh + dgamma xh + dbeta
// and back, with u = gamma delta, du = gamma d(delta) + dgamma delta, q = mean(xh u), dq = mean(dxh u + xh du):
//   delta_x = r (u - mean u - xh q)
//   d(delta_x) = - r mean(xh dx) delta_x + r (du - mean du - dxh q - xh dq)
//   (H y)_gamma = sum xh d(delta) + dxh delta,   (H y)_beta = sum d(delta).
// Where mean and variance are constants (alpha = 0) there are no means: dxh = r dx, d(delta_x) = r du.
//
// Columns: value(row) and put(row, v) of the scratch, theta(row) of the rows of y. Included inside a namespace, so that
// the CPU's are compiled for the instruction set around them.

// Calls body(entry, parameter) for the entries of a group: x is [I, O, R], the group all of it at one place of O, and
// gamma the same for L neighbours and repeated every C of these.
template <typename T, typename Body>
CHAOS_EXT_HD void for_group(const TangentNode<T>& n, int64_t group, const Body& body) {
  for (int64_t b = 0; b < n.I; ++b) {
    const int64_t start = (b * n.O + group) * n.R;
    int64_t c = start / n.L % n.C, l = start % n.L;
    for (int64_t m = 0; m < n.R; ++m) {
      body(start + m, c);
      if (++l < n.L) continue;
      l = 0;
      if (++c == n.C) c = 0;
    }
  }
}

// The same, for the entries with one parameter.
template <typename T, typename Body>
CHAOS_EXT_HD void for_parameter(const TangentNode<T>& n, int64_t c, const Body& body) {
  for (int64_t start = c * n.L; start < n.numbers(); start += n.C * n.L) {
    for (int64_t l = 0; l < n.L; ++l) body(start + l);
  }
}

// d of z in one group. Keeps dxh, and mean(xh dx).
template <typename V, typename T, typename Columns>
CHAOS_EXT_HD void norm_forward(const Columns& at, const TangentNode<T>& n, int64_t group) {
  const T r = n.r[group], share = n.alpha / static_cast<T>(n.I * n.R);
  V mean{}, inner{};
  if (n.in[0].has() && n.alpha != T(0)) {
    for_group(n, group, [&](int64_t i, int64_t) {
      const V d = at.value(n.in[0].d + i);
      mean += d;
      inner += n.a[i] * d;
    });
    mean = share * mean, inner = share * inner;
  }
  if (n.in[0].has()) at.put(n.own + n.numbers() + group, inner);
  for_group(n, group, [&](int64_t i, int64_t c) CHAOS_EXT_HD_LAMBDA {
    V z{};
    if (n.in[0].has()) {
      const V dxh = r * (at.value(n.in[0].d + i) - mean - n.a[i] * inner);
      at.put(n.own + i, dxh);
      z = n.W == nullptr ? dxh : n.W[c] * dxh;
    }
    if (n.row_w >= 0) z += n.a[i] * at.theta(n.row_w + c);
    if (n.row_b >= 0) z += at.theta(n.row_b + c);
    at.put(n.out.d + i, z);
  });
}

// d(delta_x) in one group, before any row of theta is overwritten; the input has a tangent.
template <typename V, typename T, typename Columns>
CHAOS_EXT_HD void norm_to_input(const Columns& at, const TangentNode<T>& n, int64_t group) {
  const T r = n.r[group], share = n.alpha / static_cast<T>(n.I * n.R);
  const auto scaled = [&](int64_t i, int64_t c)
                          CHAOS_EXT_HD_LAMBDA { return n.W == nullptr ? n.delta[i] : n.W[c] * n.delta[i]; };
  const auto scaled_tangent = [&](int64_t i, int64_t c) CHAOS_EXT_HD_LAMBDA {
    const V e = at.value(n.out.e + i);
    V du = n.W == nullptr ? e : n.W[c] * e;
    if (n.row_w >= 0) du += n.delta[i] * at.theta(n.row_w + c);
    return du;
  };
  T mean = T(0), q = T(0);
  V dmean{}, dq{};
  if (n.alpha != T(0)) {
    for_group(n, group, [&](int64_t i, int64_t c) CHAOS_EXT_HD_LAMBDA {
      const T u = scaled(i, c);
      const V du = scaled_tangent(i, c);
      mean += u;
      q += n.a[i] * u;
      dmean += du;
      dq += u * at.value(n.own + i) + n.a[i] * du;
    });
    mean *= share, q *= share;
    dmean = share * dmean, dq = share * dq;
  }
  const V inner = at.value(n.own + n.numbers() + group);
  for_group(n, group, [&](int64_t i, int64_t c) CHAOS_EXT_HD_LAMBDA {
    const T back = r * (scaled(i, c) - mean - n.a[i] * q);
    V e = r * (scaled_tangent(i, c) - dmean - q * at.value(n.own + i) - n.a[i] * dq - back * inner);
    if (n.adds[0]) e += at.value(n.in[0].e + i);
    at.put(n.in[0].e + i, e);
  });
}

// (H y)_gamma and (H y)_beta of one parameter.
template <typename V, typename T, typename Columns>
CHAOS_EXT_HD void norm_to_theta(const Columns& at, const TangentNode<T>& n, int64_t c, V& gamma, V& beta) {
  for_parameter(n, c, [&](int64_t i) CHAOS_EXT_HD_LAMBDA {
    const V e = at.value(n.out.e + i);
    beta += e;
    gamma += n.a[i] * e;
    if (n.in[0].has()) gamma += n.delta[i] * at.value(n.own + i);
  });
}
