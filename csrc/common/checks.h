// Argument checks and type dispatch for every operator. All messages read
//
//     <op>: expected <arg> <constraint>, got <value>
//
// so that a user sees the operator, the argument, what was wanted and what came.
#pragma once

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "expect.h"

namespace chaos_ext {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string device_string(const Tensor& t) {
  const auto device = t.device();
  if (device.is_cpu()) return "cpu";
  const std::string type = device.is_cuda() ? "cuda" : "device type " + std::to_string(static_cast<int>(device.type()));
  return type + ":" + std::to_string(device.index());
}

inline void check_floating(const char* op, const char* arg, const Tensor& t) {
  const ScalarType type = t.scalar_type();
  CE_EXPECT(type == ScalarType::Float || type == ScalarType::Double, op, ": expected ", arg,
            " of dtype float32 or float64, got ", torch::headeronly::toString(type));
}

// The dtype of the leading argument of the operator; of devices: arguments.h.
inline void check_like(const char* op, const char* arg, const Tensor& t, const char* lead_arg, const Tensor& lead) {
  CE_EXPECT(t.scalar_type() == lead.scalar_type(), op, ": expected ", arg, " of the dtype of ", lead_arg, " (",
            torch::headeronly::toString(lead.scalar_type()), "), got ", torch::headeronly::toString(t.scalar_type()));
}

inline void check_contiguous(const char* op, const char* arg, const Tensor& t) {
  CE_EXPECT(t.is_contiguous(), op, ": expected ", arg, " contiguous (call .contiguous() first), got sizes ",
            shape_string(t.sizes()), " with strides ", shape_string(t.strides()));
}

inline void check_dim(const char* op, const char* arg, const Tensor& t, int64_t dim) {
  CE_EXPECT(t.dim() == dim, op, ": expected ", arg, " with ", dim, " dimensions, got ", shape_string(t.sizes()));
}

inline void check_shape(const char* op, const char* arg, const Tensor& t, std::initializer_list<int64_t> shape) {
  bool equal = t.dim() == static_cast<int64_t>(shape.size());
  int64_t axis = 0;
  for (const int64_t size : shape) equal = equal && t.size(axis++) == size;
  CE_EXPECT(equal, op, ": expected ", arg, " of shape ", shape_string(shape), ", got ", shape_string(t.sizes()));
}

inline void check_same_shape(const char* op, const char* arg, const Tensor& t, const char* lead_arg,
                             const Tensor& lead) {
  bool equal = t.dim() == lead.dim();
  for (int64_t axis = 0; equal && axis < t.dim(); ++axis) equal = t.size(axis) == lead.size(axis);
  CE_EXPECT(equal, op, ": expected ", arg, " of the shape of ", lead_arg, " ", shape_string(lead.sizes()), ", got ",
            shape_string(t.sizes()));
}

// The usual case: dtype, contiguity and shape in one line.
inline void check_operand(const char* op, const char* arg, const Tensor& t, const char* lead_arg, const Tensor& lead,
                          std::initializer_list<int64_t> shape) {
  check_like(op, arg, t, lead_arg, lead);
  check_shape(op, arg, t, shape);
  check_contiguous(op, arg, t);
}

// A contiguous tensor of the dtype and device of `like`. Not through torch::stable::new_empty: that looks the operator
// up by its name and boxes six arguments, 1.2 us a tensor, which small operators feel.
inline Tensor new_empty(const Tensor& like, const int64_t* shape, int64_t dim) {
  std::vector<int64_t> strides(dim, 1);
  for (int64_t axis = dim - 1; axis > 0; --axis) strides[axis - 1] = strides[axis] * std::max<int64_t>(shape[axis], 1);
  int32_t dtype = 0, device_type = 0, device_index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle out = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dim, shape, strides.data(), dtype, device_type, device_index, &out));
  return Tensor(out);
}

inline Tensor new_empty(const Tensor& like, std::initializer_list<int64_t> shape) {
  return new_empty(like, shape.begin(), static_cast<int64_t>(shape.size()));
}

inline Tensor new_empty_like(const Tensor& t) { return new_empty(t, t.sizes().data(), t.dim()); }

// Calls body with a value of type float or double, the dtype of t (which check_floating has seen before).
template <typename Body>
inline void dispatch_floating(const Tensor& t, const Body& body) {
  if (t.scalar_type() == ScalarType::Float) {
    body(float{});
  } else {
    body(double{});
  }
}

template <typename T>
inline const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <typename T>
inline T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// On the CPU; not through torch, which would ask for a derivative.
inline void fill_zeros(const Tensor& t) {
  if (t.numel() > 0) std::memset(t.mutable_data_ptr(), 0, t.numel() * t.element_size());
}

}  // namespace chaos_ext
