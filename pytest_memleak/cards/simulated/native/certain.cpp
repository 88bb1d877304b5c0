// What is certain of a result without the values that it is made from.

#include "kernels.h"

#include <cmath>

namespace memleak {
namespace {

bool known_to_be_all(const c10::IValue& value, bool truth) {
  if (!value.isTensor() || !value.toTensor().defined() || value.toTensor().scalar_type() != at::kBool) {
    return false;
  }
  const at::Tensor& tensor = value.toTensor();
  if (const std::optional<bool> all = alike(tensor)) {
    return *all == truth;
  }
  if (tensor.numel() > kMostElements || !knows(tensor)) {
    return false;
  }
  const at::Tensor values = on_card(tensor) ? values_of(tensor) : tensor;
  return truth ? values.all().item<bool>() : !values.any().item<bool>();
}

}  // namespace

std::optional<bool> certain(const Operation& operation, at::ArrayRef<c10::IValue> arguments) {
  if (one_of(operation.name, {"isnan", "isinf", "isposinf", "isneginf"})) {
    return false;
  }
  const bool equal = operation.name == "eq", unequal = operation.name == "ne";
  if (equal || unequal) {
    const c10::IValue& other = arguments[1];
    if (other.isScalar() && std::isinf(other.toScalar().to<double>())) {
      return unequal;
    }
    if (other.isTensor() && arguments[0].toTensor().is_same(other.toTensor())) {
      return equal;
    }
  }
  if (one_of(operation.name, {"bitwise_or", "bitwise_or_", "logical_or", "logical_or_", "__or__"})) {
    if (known_to_be_all(arguments[0], true) || known_to_be_all(arguments[1], true)) {
      return true;
    }
  }
  if (one_of(operation.name, {"bitwise_and", "bitwise_and_", "logical_and", "logical_and_", "__and__", "mul"})) {
    if (known_to_be_all(arguments[0], false) || known_to_be_all(arguments[1], false)) {
      return false;
    }
    if (known_to_be_all(arguments[0], true) && known_to_be_all(arguments[1], true)) {
      return true;
    }
  }
  if (one_of(operation.name, {"any", "all", "bitwise_not", "logical_not"}) && arguments[0].isTensor()) {
    if (const std::optional<bool> all = alike(arguments[0].toTensor())) {
      return *all == one_of(operation.name, {"any", "all"});
    }
  }
  return std::nullopt;
}

}  // namespace memleak
