// What Python and the kernels must agree on, in words "name=value", from the very constants that the kernels use.
// chaos_ext/_ops/layout.py has the same names; the package compares them when it loads a library.
#pragma once

#include <cstddef>
#include <string>

#include "dynamics/tangent_records.h"
#include "layers/activation_math.h"
#include "spectrum/reflector_shape.h"

namespace chaos_ext {

#define CE_FIELD(Record, field) {#Record "." #field, offsetof(Record, field) / sizeof(Record::field)}

inline std::string layout_text() {
  const struct {
    const char* name;
    int64_t value;
  } entries[] = {
      {"RELU", static_cast<int64_t>(Activation::kRelu)},
      {"LEAKY_RELU", static_cast<int64_t>(Activation::kLeakyRelu)},
      {"ELU", static_cast<int64_t>(Activation::kElu)},
      {"SELU", static_cast<int64_t>(Activation::kSelu)},
      {"CELU", static_cast<int64_t>(Activation::kCelu)},
      {"SIGMOID", static_cast<int64_t>(Activation::kSigmoid)},
      {"TANH", static_cast<int64_t>(Activation::kTanh)},
      {"SOFTPLUS", static_cast<int64_t>(Activation::kSoftplus)},
      {"SILU", static_cast<int64_t>(Activation::kSilu)},
      {"GELU_ERF", static_cast<int64_t>(Activation::kGeluErf)},
      {"GELU_TANH", static_cast<int64_t>(Activation::kGeluTanh)},
      {"HARDTANH", static_cast<int64_t>(Activation::kHardtanh)},
      {"ACTIVATIONS", static_cast<int64_t>(Activation::kCount)},
      {"REFLECTOR_BLOCK", kBlock},
      {"LINEAR", kLinearNode},
      {"SCALE", kScaleNode},
      {"SUM", kSumNode},
      {"NORM", kNormNode},
      {"SOFTMAX", kSoftmaxNode},
      {"DIAGONAL", kDiagonalNode},
      {"NODE_KINDS", kNodeKinds},
      {"PLAIN", kPlainUpdate},
      {"MOMENTUM", kMomentumUpdate},
      {"ADAM", kAdamUpdate},
      {"UPDATE_KINDS", kUpdateKinds},
      {"BUFFERS.PLAIN", buffers_of(kPlainUpdate)},
      {"BUFFERS.MOMENTUM", buffers_of(kMomentumUpdate)},
      {"BUFFERS.ADAM", buffers_of(kAdamUpdate)},
      {"MAX_NODES", kMaxNodes},
      {"MAX_SLOTS", kMaxSlots},
      {"UPDATE_CHUNKS", kUpdateChunks},
      CE_FIELD(NodeRecord, kind),
      CE_FIELD(NodeRecord, first),
      CE_FIELD(NodeRecord, second),
      CE_FIELD(NodeRecord, out),
      CE_FIELD(NodeRecord, row_w),
      CE_FIELD(NodeRecord, row_b),
      CE_FIELD(FactorRecord, alpha),
      CE_FIELD(FactorRecord, beta),
      CE_FIELD(SlotRecord, kind),
      CE_FIELD(SlotRecord, first),
      CE_FIELD(SlotRecord, rows),
      CE_FIELD(SlotRecord, buffer),
      CE_FIELD(SlotRecord, buffer2),
      CE_FIELD(CoefficientRecord, decay),
      CE_FIELD(CoefficientRecord, mu),
      CE_FIELD(CoefficientRecord, c1),
      CE_FIELD(CoefficientRecord, e1),
      CE_FIELD(CoefficientRecord, e2),
      CE_FIELD(CoefficientRecord, b2),
      CE_FIELD(CoefficientRecord, keep),
      {"NodeRecord", kNodeFields},
      {"FactorRecord", kNodeFactors},
      {"SlotRecord", kSlotFields},
      {"CoefficientRecord", kSlotNumbers},
  };
  std::string text;
  for (const auto& [name, value] : entries) text += std::string(name) + "=" + std::to_string(value) + " ";
  return text;
}

#undef CE_FIELD

}  // namespace chaos_ext

// Each library exports its own: CE_EXPORT_LAYOUT once in each.
#define CE_EXPORT_LAYOUT                                                             \
  extern "C" __attribute__((visibility("default"))) const char* chaos_ext_layout() { \
    static const std::string text = chaos_ext::layout_text();                        \
    return text.c_str();                                                             \
  }
