// Batch norm as a card has it, computed by the CPU's.

#include "operation.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/native_batch_norm.h>
#include <ATen/ops/native_batch_norm_backward.h>

#include <array>
#include <optional>
#include <tuple>

namespace memleak {
namespace normalization {

std::optional<at::Tensor> maybe(const c10::IValue& value) {
  return value.isTensor() && value.toTensor().defined() ? std::optional<at::Tensor>(value.toTensor()) : std::nullopt;
}

Stack forward(const c10::FunctionSchema&, const Stack& given, const Stack&) {
  const bool trains = given[5].toBool();
  const auto [output, mean, deviation] = at::native_batch_norm(
      given[0].toTensor(),
      maybe(given[1]),
      maybe(given[2]),
      maybe(given[3]),
      maybe(given[4]),
      trains,
      given[6].toDouble(),
      given[7].toDouble());
  const at::Tensor none = at::empty({0}, mean.options());
  return {output, trains ? mean : none, trains ? deviation : none, at::empty({0}, at::kByte)};
}

// On a card it hands on what it went by, trained or not.
Stack own_forward(const c10::FunctionSchema& schema, const Stack& given, const Stack& results) {
  Stack found = forward(schema, given, results);
  found.pop_back();
  if (!given[5].toBool()) {
    const auto type = results[1].toTensor().scalar_type();
    found[1] = given[3].toTensor().to(type);
    found[2] = given[4].toTensor().to(type).add(given[7].toDouble()).rsqrt();
  }
  return found;
}

Stack backward(const c10::FunctionSchema&, const Stack& given, const Stack&) {
  const auto [input, weight, bias] = at::native_batch_norm_backward(
      given[1].toTensor(),
      given[0].toTensor(),
      maybe(given[2]),
      maybe(given[3]),
      maybe(given[4]),
      maybe(given[5]),
      maybe(given[6]),
      /*train=*/true,
      given[7].toDouble(),
      std::array<bool, 3>{true, true, true});
  return {input, weight, bias};
}

}  // namespace normalization

ByHand normalization_by_hand(const std::string& name) {
  if (name == "cudnn_batch_norm") {
    return normalization::forward;
  }
  if (name == "native_batch_norm") {
    return normalization::own_forward;
  }
  return name == "cudnn_batch_norm_backward" ? normalization::backward : nullptr;
}

}  // namespace memleak
