// Kinds 1, 3, 4, 5 of conv_lanes_ as products with gathered rows: the plain operand is an image, X or Z. It is unfolded
// once into a matrix that all products share: one an output channel (1, 4) or input channel (3, 5) and class of places.
//
// A class is the places of the other image that the same taps reach: with a stride, an input pixel is reached by few of
// them, and at the border of the image by fewer.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "conv_lanes_plan.h"

namespace chaos_ext {

// The places that the same taps reach. source[place][tap]: what the plain operand has there, negative for a zero.
struct PlaceClass {
  std::vector<int64_t> taps, places, source;
};

// The coordinates of one axis of the other image, and where the taps lead in the plain one: lead[coordinate][tap].
struct AxisLeads {
  int64_t places, kernel;
  std::vector<int64_t> lead;
  std::vector<int64_t> unbounded;  // the same if the plain image had no border; where the stride leads

  int64_t at(int64_t place, int64_t tap) const { return lead[place * kernel + tap]; }
};

// The plain operand is X, the places are output coordinates.
inline AxisLeads leads_to_input(const ConvAxis& axis) {
  AxisLeads leads{axis.output, axis.kernel, {}, {}};
  for (int64_t at = 0; at < axis.output; ++at) {
    for (int64_t tap = 0; tap < axis.kernel; ++tap) {
      leads.lead.push_back(input_of(axis, at, tap));
      leads.unbounded.push_back(at * axis.stride - axis.pad + tap * axis.dilation);
    }
  }
  return leads;
}

// The plain operand is Z, the places are input coordinates.
inline AxisLeads leads_to_output(const ConvAxis& axis) {
  AxisLeads leads{axis.input, axis.kernel, {}, {}};
  for (int64_t at = 0; at < axis.input; ++at) {
    for (int64_t tap = 0; tap < axis.kernel; ++tap) {
      leads.lead.push_back(output_of(axis, at, tap));
      leads.unbounded.push_back((at + axis.pad - tap * axis.dilation) / axis.stride);
    }
  }
  return leads;
}

// The classes of an axis's coordinates by the taps that count there. exact: taps outside are left out; otherwise only
// those that the stride excludes, so that classes are few.
struct AxisClasses {
  std::vector<std::vector<int64_t>> taps;  // of each class
  std::vector<int64_t> of;                 // class of each coordinate

  AxisClasses(const AxisLeads& leads, bool exact) {
    for (int64_t at = 0; at < leads.places; ++at) {
      std::vector<int64_t> own;
      for (int64_t tap = 0; tap < leads.kernel; ++tap) {
        const int64_t lead = leads.at(at, tap);
        if (lead >= 0 || (!exact && lead == kOutside)) own.push_back(tap);
      }
      const auto known = std::find(taps.begin(), taps.end(), own);
      of.push_back(known - taps.begin());
      if (known == taps.end()) taps.push_back(own);
    }
  }
};

// How the plain image is unfolded.
struct Unfolding {
  Side plain, other;
  AxisLeads rows, columns;     // from places of the other image into the plain one
  int64_t image, sample;       // numbers with lanes of one channel of the other image, and of one sample
  int64_t weight, inner_step;  // with lanes: from one product's weights to the next, from one plain channel to the next
};

inline Unfolding unfolding(const ConvShape& s, const Side& plain, const Side& other, AxisLeads rows,
                           AxisLeads columns) {
  const int64_t image = other.places() * s.k;
  return {plain,
          other,
          std::move(rows),
          std::move(columns),
          image,
          other.channels * s.groups * image,
          other.weight_step * s.k,
          plain.weight_step * s.k};
}

inline Unfolding unfolded_input(const ConvShape& s) {
  return unfolding(s, input_side(s), output_side(s), leads_to_input(vertical(s)), leads_to_input(horizontal(s)));
}

inline Unfolding unfolded_output(const ConvShape& s) {
  return unfolding(s, output_side(s), input_side(s), leads_to_output(vertical(s)), leads_to_output(horizontal(s)));
}

inline std::vector<PlaceClass> place_classes(const Unfolding& u, bool exact) {
  const AxisClasses rows(u.rows, exact), columns(u.columns, exact);
  const size_t across = columns.taps.size();
  std::vector<PlaceClass> classes(rows.taps.size() * across);
  for (size_t a = 0; a < rows.taps.size(); ++a) {
    for (size_t b = 0; b < across; ++b) {
      for (const int64_t i : rows.taps[a]) {
        for (const int64_t j : columns.taps[b]) classes[a * across + b].taps.push_back(i * u.columns.kernel + j);
      }
    }
  }
  const auto add_place = [&](int64_t h, int64_t w) {
    const int64_t a = rows.of[h], b = columns.of[w];
    PlaceClass& own = classes[a * across + b];
    own.places.push_back(h * u.other.width + w);
    for (const int64_t tap_h : rows.taps[a]) {
      const int64_t y = u.rows.at(h, tap_h);
      for (const int64_t tap_w : columns.taps[b]) {
        const int64_t x = u.columns.at(w, tap_w);
        own.source.push_back(y < 0 || x < 0 ? kOutside : y * u.plain.width + x);
      }
    }
  };
  for (int64_t h = 0; h < u.other.height; ++h) {
    for (int64_t w = 0; w < u.other.width; ++w) add_place(h, w);
  }
  return classes;
}

// What one matrix holds: samples n0 to n1 of group g.
struct Part {
  int64_t g, n0, n1;

  int64_t samples() const { return n1 - n0; }
};

// to[i rows] = from[source[i step]], a negative source for a zero.
template <typename T>
void gather(const T* from, const int64_t* source, int64_t step, int64_t count, T* to, int64_t rows) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = source[i * step];
    to[i * rows] = at < 0 ? T(0) : from[at];
  }
}

// Calls body(n - n0, c, image) for the plain images of a part.
template <typename T, typename Body>
void for_each_image(const ConvShape& s, const Unfolding& u, const Part& part, const T* plain, const Body& body) {
  const int64_t channels = u.plain.channels;
  for (int64_t n = part.n0; n < part.n1; ++n) {
    for (int64_t c = 0; c < channels; ++c) {
      body(n - part.n0, c, plain + ((n * s.groups + part.g) * channels + c) * u.plain.places());
    }
  }
}

// Rows (channel, tap), terms (sample, place): sums run over the places.
template <typename T>
std::unique_ptr<T[]> taps_as_rows(const ConvShape& s, const Unfolding& u, const Part& part, const PlaceClass& own,
                                  const T* plain, int64_t rows) {
  const int64_t taps = own.taps.size(), places = own.places.size(), K = part.samples() * places;
  std::unique_ptr<T[]> out = scratch<T>(tiled_size(u.plain.channels * taps, K, rows));
  for_each_image(s, u, part, plain, [&](int64_t n, int64_t c, const T* image) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      T* to = out.get() + tiled_row(c * taps + tap, K, rows) + n * places * rows;
      gather(image, own.source.data() + tap, taps, places, to, rows);
    }
  });
  return out;
}

// Rows (sample, place), terms (channel, tap): sums run over the taps.
template <typename T>
std::unique_ptr<T[]> places_as_rows(const ConvShape& s, const Unfolding& u, const Part& part, const PlaceClass& own,
                                    const T* plain, int64_t rows) {
  const int64_t taps = own.taps.size(), places = own.places.size(), K = u.plain.channels * taps;
  std::unique_ptr<T[]> out = scratch<T>(tiled_size(part.samples() * places, K, rows));
  for_each_image(s, u, part, plain, [&](int64_t n, int64_t c, const T* image) {
    for (int64_t place = 0; place < places; ++place) {
      T* to = out.get() + tiled_row(n * places + place, K, rows) + c * taps * rows;
      gather(image, own.source.data() + place * taps, 1, taps, to, rows);
    }
  });
  return out;
}

}  // namespace chaos_ext
