// Checks without torch: expect(condition, parts of the message, ...). Messages read as those of checks.h.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace chaos_ext {

// "[2, 3]"
template <typename Sizes>
inline std::string shape_string(const Sizes& sizes) {
  std::string text = "[";
  for (const int64_t size : sizes) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(size);
  }
  return text + "]";
}

// Throws what torch's own checks throw; the message is put together only then.
template <typename... Parts>
inline void expect(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace chaos_ext
