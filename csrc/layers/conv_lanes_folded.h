// conv_lanes_ as dense products, for any number of columns: they are folded into the lanes or into the rows of a
// product, so that no vector stays half empty. One product a class of places of the image that is not unfolded:
//
//   kind  rows            terms           lanes           unfolded image
//   0, 2  channel         channel, tap    n, place, x     the lane operand
//   1, 3  channel, x      channel, tap    n, place        the plain operand
//   4, 5  channel, x      n, place        channel, tap    the plain operand
//
// The operand of the rows is copied into register tiles, the unfolded image in blocks that stay in the cache; a block
// of the result is made in the cache, and goes where it belongs once all its terms are in.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "conv_lanes_unfold.h"

namespace chaos_ext {

// How one operand is addressed: group g, channel c and combination i of the other indices at group g + channel c +
// at[i], then columns.
struct Addresses {
  int64_t channel, group;
  std::vector<int64_t> at;
};

// Numbers that lie one after the other in two places; from: negative for zeros.
struct Stretch {
  int64_t to, from, count;
};

inline void append_stretch(std::vector<Stretch>& list, int64_t to, int64_t from, int64_t count) {
  if (!list.empty()) {
    Stretch& last = list.back();
    const bool goes_on = from < 0 ? last.from < 0 : last.from >= 0 && last.from + last.count == from;
    if (goes_on && last.to + last.count == to) {
      last.count += count;
      return;
    }
  }
  list.push_back({to, from, count});
}

// Along one axis: coordinates of the other image that the same taps reach, and where these lead: [coordinate][tap].
struct AxisClass {
  std::vector<int64_t> taps, coordinates, lead, unbounded;

  int64_t leads(int64_t i, int64_t tap) const { return lead[i * taps.size() + tap]; }
  int64_t far(int64_t i, int64_t tap) const { return unbounded[i * taps.size() + tap]; }
  // Whether each tap leads one pixel further than the one before. Not so where those between lead out of the image from
  // everywhere: an image smaller than the stride has gaps among the taps that reach it.
  bool taps_are_neighbours() const {
    const int64_t count = taps.size();
    for (int64_t tap = 1; tap < count; ++tap) {
      if (far(0, tap) != far(0, tap - 1) + 1) return false;
    }
    return true;
  }
};

// exact: as in AxisClasses; otherwise those taps are left out that lead out of the image from everywhere.
inline std::vector<AxisClass> axis_classes(const AxisLeads& leads, bool exact) {
  const AxisClasses found(leads, exact);
  std::vector<AxisClass> classes(found.taps.size());
  for (int64_t at = 0; at < leads.places; ++at) classes[found.of[at]].coordinates.push_back(at);
  for (size_t c = 0; c < classes.size(); ++c) {
    AxisClass& own = classes[c];
    for (const int64_t tap : found.taps[c]) {
      const auto inside = [&](int64_t at) { return leads.at(at, tap) >= 0; };
      if (std::any_of(own.coordinates.begin(), own.coordinates.end(), inside)) own.taps.push_back(tap);
    }
    // So that taps one after the other lead to pixels one after the other.
    const auto leads_to = [&](int64_t tap) { return leads.unbounded[own.coordinates[0] * leads.kernel + tap]; };
    if (own.taps.size() > 1 && leads_to(own.taps[1]) < leads_to(own.taps[0])) {
      std::reverse(own.taps.begin(), own.taps.end());
    }
    for (const int64_t at : own.coordinates) {
      for (const int64_t tap : own.taps) {
        own.lead.push_back(leads.at(at, tap));
        own.unbounded.push_back(leads.unbounded[at * leads.kernel + tap]);
      }
    }
  }
  return classes;
}

// The places in a class of rows and a class of columns.
struct FoldedClass {
  const AxisClass &rows, &columns;

  int64_t taps() const { return static_cast<int64_t>(rows.taps.size() * columns.taps.size()); }
  int64_t places() const { return static_cast<int64_t>(rows.coordinates.size() * columns.coordinates.size()); }

  // Calls body(tap), all taps of the kernel counted.
  template <typename Body>
  void for_each_tap(int64_t kernel_width, const Body& body) const {
    for (const int64_t i : rows.taps) {
      for (const int64_t j : columns.taps) body(i * kernel_width + j);
    }
  }

  template <typename Body>
  void for_each_place(int64_t width, const Body& body) const {
    for (const int64_t h : rows.coordinates) {
      for (const int64_t w : columns.coordinates) body(h * width + w);
    }
  }

  // Of each tap: from which pixels of a plane `width` wide the class's places come, in order.
  std::vector<std::vector<Stretch>> stretches(int64_t width) const {
    const int64_t across = columns.coordinates.size(), taps_across = columns.taps.size();
    std::vector<std::vector<Stretch>> one(taps_across), all(taps());
    for (int64_t j = 0; j < taps_across; ++j) {
      for (int64_t w = 0; w < across; ++w) append_stretch(one[j], w, columns.leads(w, j), 1);
    }
    for (int64_t t = 0; t < taps(); ++t) {
      for (size_t h = 0; h < rows.coordinates.size(); ++h) {
        const int64_t y = rows.leads(h, t / taps_across);
        for (const Stretch& s : one[t % taps_across]) {
          append_stretch(all[t], h * across + s.to, y < 0 || s.from < 0 ? kOutside : y * width + s.from, s.count);
        }
      }
    }
    return all;
  }
};

// Of the weight: combinations (channel of the unfolded image, tap).
inline Addresses weight_addresses(const ConvShape& s, const Unfolding& u, const FoldedClass& own, int64_t columns) {
  Addresses a{u.other.weight_step * columns, s.Og() * s.Cg * s.taps() * columns, {}};
  a.at.reserve(u.plain.channels * own.taps());
  for (int64_t c = 0; c < u.plain.channels; ++c) {
    own.for_each_tap(s.kw, [&](int64_t tap) { a.at.push_back((c * u.plain.weight_step + tap) * columns); });
  }
  return a;
}

// Of the image that is not unfolded, which has columns: combinations (sample, place).
inline Addresses image_addresses(const ConvShape& s, const Unfolding& u, const FoldedClass& own) {
  Addresses a{u.image, u.other.channels * u.image, {}};
  a.at.reserve(s.N * own.places());
  for (int64_t n = 0; n < s.N; ++n) {
    own.for_each_place(u.other.width, [&](int64_t place) { a.at.push_back(n * u.sample + place * s.k); });
  }
  return a;
}

template <typename T>
struct FoldedProduct {
  ConvShape s;
  const ConvKernels<T>& kernels;
  const Unfolding& u;
  FoldedClass own;
  int64_t row_columns, lane_columns;  // k and 1, or 1 and k
  bool to_weight;                     // kinds 4 and 5
  const T* rows_from;
  const T* image;
  T* out;
  Addresses rows, lanes;
  bool accumulate;
  int64_t first_term, terms;
  std::vector<std::vector<Stretch>> stretches;  // of places, unless to_weight

  int64_t M() const { return u.other.channels * row_columns; }
  int64_t K() const { return terms; }
  int64_t units() const { return static_cast<int64_t>(lanes.at.size()); }
  int64_t plane_step() const { return u.plain.places() * lane_columns; }
  int64_t sample_step() const { return s.groups * u.plain.channels * plane_step(); }
  const T* plane(int64_t g, int64_t c) const { return image + (g * u.plain.channels + c) * plane_step(); }
};

// count of the columns of each term of a channel to `rows` numbers from each other.
template <int kCount, typename T>
void copy_terms(const T* from, const int64_t* at, int64_t terms, int64_t count, T* to, int64_t rows) {
  for (int64_t t = 0; t < terms; ++t) {
    const T* own = from + at[t];
    if constexpr (kCount > 0) {
      for (int i = 0; i < kCount; ++i) to[t * rows + i] = own[i];
    } else {
      for (int64_t i = 0; i < count; ++i) to[t * rows + i] = own[i];
    }
  }
}

template <typename T>
void copy_terms(const T* from, const int64_t* at, int64_t terms, int64_t count, T* to, int64_t rows) {
  switch (count) {
    case 1: return copy_terms<1>(from, at, terms, count, to, rows);
    case 2: return copy_terms<2>(from, at, terms, count, to, rows);
    case 3: return copy_terms<3>(from, at, terms, count, to, rows);
    case 4: return copy_terms<4>(from, at, terms, count, to, rows);
    case 6: return copy_terms<6>(from, at, terms, count, to, rows);
    case 8: return copy_terms<8>(from, at, terms, count, to, rows);
    case 12: return copy_terms<12>(from, at, terms, count, to, rows);
    default: return copy_terms<0>(from, at, terms, count, to, rows);
  }
}

// Rows m0 to m1 of group g in tiles. Few terms at a time: those of one channel may be far from each other.
template <typename T>
void rows_in_tiles(const FoldedProduct<T>& p, int64_t g, int64_t m0, int64_t m1, int64_t rows, T* to) {
  constexpr int64_t kTerms = 64;
  const int64_t K = p.K();
  for (int64_t t = 0; t < K; t += kTerms) {
    for (int64_t m = m0; m < m1;) {
      const int64_t x = m % p.row_columns, r = (m - m0) % rows;
      const int64_t count = std::min({p.row_columns - x, rows - r, m1 - m});
      const T* from = p.rows_from + g * p.rows.group + m / p.row_columns * p.rows.channel + x;
      copy_terms(from, p.rows.at.data() + p.first_term + t, std::min(kTerms, K - t), count,
                 to + tiled_row(m - m0, K, rows) + t * rows, rows);
      m += count;
    }
  }
}

// Lanes of units u0 to u1 of group g.
struct LaneBlock {
  int64_t g, u0, u1, row;  // row: numbers from one term to the next
};

template <typename T>
void copy_stretches(const std::vector<Stretch>& list, const T* from, T* to) {
  for (const Stretch& s : list) {
    if (s.from < 0) {
      for (int64_t i = 0; i < s.count; ++i) to[s.to + i] = T(0);
    } else {
      for (int64_t i = 0; i < s.count; ++i) to[s.to + i] = from[s.from + i];
    }
  }
}

// Of each tap, where the lanes (n, place, columns) of a block come from, relative to the plane of sample 0.
template <typename T>
std::vector<std::vector<Stretch>> block_stretches(const FoldedProduct<T>& p, const LaneBlock& block) {
  const int64_t places = p.own.places(), columns = p.lane_columns;
  std::vector<std::vector<Stretch>> own(p.stretches.size());
  for (size_t t = 0; t < own.size(); ++t) {
    const std::vector<Stretch>& all = p.stretches[t];
    for (int64_t n = block.u0 / places; n * places < block.u1; ++n) {
      const int64_t p0 = std::max<int64_t>(0, block.u0 - n * places), p1 = std::min(places, block.u1 - n * places);
      auto s = std::partition_point(all.begin(), all.end(), [&](const Stretch& e) { return e.to + e.count <= p0; });
      for (; s != all.end() && s->to < p1; ++s) {
        const int64_t skip = std::max<int64_t>(0, p0 - s->to), count = std::min(s->count, p1 - s->to) - skip;
        const int64_t from = s->from < 0 ? kOutside : n * p.sample_step() + (s->from + skip) * columns;
        append_stretch(own[t], (n * places + s->to + skip - block.u0) * columns, from, count * columns);
      }
    }
  }
  return own;
}

// Terms (channel, tap) t0 to t1 of a block.
template <typename T>
void unfold_taps(const FoldedProduct<T>& p, const LaneBlock& block, const std::vector<std::vector<Stretch>>& own,
                 int64_t t0, int64_t t1, T* to) {
  const int64_t taps = own.size();
  for (int64_t t = t0; t < t1; ++t, to += block.row) copy_stretches(own[t % taps], p.plane(block.g, t / taps), to);
}

// A sample's planes of the channels of a block with zeros around, so that all taps lead into them.
template <typename T>
class PaddedPlanes {
 public:
  // Whether they are not much larger than the planes.
  static bool fit(const FoldedProduct<T>& p) {
    const int64_t height = range(p.own.rows.unbounded).second, width = range(p.own.columns.unbounded).second;
    return height <= 2 * p.u.plain.height + 16 && width <= 2 * p.u.plain.width + 16;
  }

  PaddedPlanes(const FoldedProduct<T>& p, const LaneBlock& block)
      : p_(p), g_(block.g), c0_(block.u0 / p.own.taps()), c1_((block.u1 - 1) / p.own.taps() + 1) {
    std::tie(top_, height_) = range(p.own.rows.unbounded);
    std::tie(left_, width_) = range(p.own.columns.unbounded);
    const AxisClass &rows = p.own.rows, &columns = p.own.columns;
    const int64_t across = columns.taps.size();
    run_ = columns.taps_are_neighbours() ? across : 1;
    for (int64_t unit = block.u0; unit < block.u1; unit += run_) {
      const int64_t c = unit / p.own.taps() - c0_, tap = unit % p.own.taps();
      const int64_t y = rows.far(0, tap / across) - rows.far(0, 0),
                    x = columns.far(0, tap % across) - columns.far(0, 0);
      offsets_.push_back((c * height_ + y) * width_ + x);
    }
    memory_.assign((c1_ - c0_) * height_ * width_ + kMostCopied, T(0));
  }

  void read_sample(int64_t n) {
    const int64_t H = p_.u.plain.height, W = p_.u.plain.width;
    const int64_t y0 = std::max<int64_t>(0, top_), y1 = std::min(H, top_ + height_);
    const int64_t x0 = std::max<int64_t>(0, left_), x1 = std::min(W, left_ + width_);
    for (int64_t c = c0_; c < c1_; ++c) {
      const T* plane = p_.plane(g_, c) + n * p_.sample_step();
      T* own = memory_.data() + (c - c0_) * height_ * width_;
      for (int64_t y = y0; y < y1; ++y) {
        std::copy(plane + y * W + x0, plane + y * W + x1, own + (y - top_) * width_ + x0 - left_);
      }
    }
  }

  // All units of one place; up to kMostCopied numbers more are written.
  void read_place(int64_t place, T* to) const {
    const int64_t across = p_.own.columns.coordinates.size();
    const int64_t y = p_.own.rows.far(place / across, 0) - top_, x = p_.own.columns.far(place % across, 0) - left_;
    const T* from = memory_.data() + y * width_ + x;
    switch (run_) {
      case 1: return copy_runs<1>(from, to);
      case 2: return copy_runs<2>(from, to);
      case 3: return copy_runs<3>(from, to);
      case 5: return copy_runs<5>(from, to);
      case 7: return copy_runs<7>(from, to);
      default: return copy_runs<0>(from, to);
    }
  }

  static constexpr int64_t kMostCopied = 8;

 private:
  // Runs of as many pixels as there are taps in a row, in vectors of four or eight that the next run corrects.
  template <int kRun>
  void copy_runs(const T* from, T* to) const {
    constexpr size_t kCopied = kRun <= 1 ? 1 : kRun == 2 ? 2 : kRun <= 4 ? 4 : 8;
    for (const int64_t offset : offsets_) {
      if constexpr (kRun > 0) {
        std::memcpy(to, from + offset, kCopied * sizeof(T));
        to += kRun;
      } else {
        to = std::copy_n(from + offset, run_, to);
      }
    }
  }

  // First and number of coordinates.
  static std::pair<int64_t, int64_t> range(const std::vector<int64_t>& leads) {
    const auto [least, most] = std::minmax_element(leads.begin(), leads.end());
    return {*least, *most - *least + 1};
  }

  const FoldedProduct<T>& p_;
  int64_t g_, c0_, c1_, top_, height_, left_, width_, run_;
  std::vector<int64_t> offsets_;
  std::vector<T> memory_;
};

// Terms (n, place) t0 to t1 of lanes (channel, tap).
template <typename T>
void unfold_places(const FoldedProduct<T>& p, PaddedPlanes<T>& planes, int64_t row, int64_t t0, int64_t t1, T* to) {
  const int64_t places = p.own.places();
  for (int64_t t = t0; t < t1; ++t, to += row) {
    if (t == t0 || t % places == 0) planes.read_sample(t / places);
    planes.read_place(t % places, to);
  }
}

// The same for taps that lead far beyond the image.
template <typename T>
void unfold_scattered_places(const FoldedProduct<T>& p, const LaneBlock& block, int64_t t0, int64_t t1, T* to) {
  const AxisClass &rows = p.own.rows, &columns = p.own.columns;
  const int64_t places = p.own.places(), across = columns.coordinates.size(), taps_across = columns.taps.size();
  for (int64_t t = t0; t < t1; ++t, to += block.row) {
    const int64_t h = t % places / across, w = t % places % across;
    for (int64_t unit = block.u0; unit < block.u1; ++unit) {
      const int64_t tap = unit % p.own.taps(), c = unit / p.own.taps();
      const int64_t y = rows.leads(h, tap / taps_across), x = columns.leads(w, tap % taps_across);
      const T* plane = p.plane(block.g, c) + t / places * p.sample_step();
      to[unit - block.u0] = y < 0 || x < 0 ? T(0) : plane[y * p.u.plain.width + x];
    }
  }
}

// Rows m0 to m1 of a block to where they belong.
template <typename T>
void store_rows(const FoldedProduct<T>& p, const LaneBlock& block, const T* C, int64_t m0, int64_t m1) {
  std::vector<Stretch> own;
  for (int64_t unit = block.u0; unit < block.u1; ++unit) {
    append_stretch(own, (unit - block.u0) * p.lane_columns, p.lanes.at[unit], p.lane_columns);
  }
  for (int64_t m = m0; m < m1; ++m, C += block.row) {
    T* out = p.out + block.g * p.lanes.group + m * p.lanes.channel;
    for (const Stretch& s : own) {
      if (p.accumulate) {
        for (int64_t i = 0; i < s.count; ++i) out[s.from + i] += C[s.to + i];
      } else {
        for (int64_t i = 0; i < s.count; ++i) out[s.from + i] = C[s.to + i];
      }
    }
  }
}

template <int kCount, typename T>
void store_columns(const int64_t* at, int64_t units, int64_t count, const T* C, int64_t row, bool accumulate, T* out) {
  const int64_t columns = kCount > 0 ? kCount : count;
  for (int64_t unit = 0; unit < units; ++unit) {
    T* to = out + at[unit];
    const T* from = C + unit;
    if (accumulate) {
      for (int64_t i = 0; i < columns; ++i) to[i] += from[i * row];
    } else {
      for (int64_t i = 0; i < columns; ++i) to[i] = from[i * row];
    }
  }
}

// The same where a channel's rows are its columns.
template <typename T>
void store_channels(const FoldedProduct<T>& p, const LaneBlock& block, const T* C, int64_t m0, int64_t m1) {
  const int64_t *at = p.lanes.at.data() + block.u0, units = block.u1 - block.u0;
  for (int64_t m = m0; m < m1;) {
    const int64_t x = m % p.row_columns, count = std::min(p.row_columns - x, m1 - m);
    T* out = p.out + block.g * p.lanes.group + m / p.row_columns * p.lanes.channel + x;
    const T* from = C + (m - m0) * block.row;
    switch (count) {
      case 2: store_columns<2>(at, units, count, from, block.row, p.accumulate, out); break;
      case 3: store_columns<3>(at, units, count, from, block.row, p.accumulate, out); break;
      case 4: store_columns<4>(at, units, count, from, block.row, p.accumulate, out); break;
      case 8: store_columns<8>(at, units, count, from, block.row, p.accumulate, out); break;
      default: store_columns<0>(at, units, count, from, block.row, p.accumulate, out);
    }
    m += count;
  }
}

}  // namespace chaos_ext
