// Checks: expect(condition, parts of the message, ...), or CE_EXPECT, which evaluates the parts only where it fails.
// Not torch's macro, whose messages begin with a path of the machine that compiled it. Without torch.
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

// Throws what torch's own checks throw.
template <typename... Parts>
[[noreturn]] inline void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

template <typename... Parts>
inline void expect(bool condition, const Parts&... parts) {
  if (!condition) refuse(parts...);
}

}  // namespace chaos_ext

#define CE_EXPECT(condition, ...)                       \
  do {                                                  \
    if (!(condition)) ::chaos_ext::refuse(__VA_ARGS__); \
  } while (false)
