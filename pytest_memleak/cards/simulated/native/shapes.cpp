// Operations whose results are as large as values say, and indices that are masks.

#include "kernels.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/nonzero.h>

#include <algorithm>

namespace memleak {
namespace {

// The run is inconclusive already: as if all elements were meant.
Stack guessed(
    const Operation& operation, at::ArrayRef<c10::IValue> arguments, const at::Tensor& first, c10::Device device) {
  if (operation.name == "equal") {
    return {true};
  }
  if (operation.name == "masked_select") {
    return {empty_strided_on(device, {first.numel()}, {1}, first.scalar_type())};
  }
  if (operation.name == "nonzero") {
    const int64_t rows = first.numel();
    return {empty_strided_on(device, {rows, first.dim()}, {1, std::max<int64_t>(rows, 1)}, at::kLong)};
  }
  if (operation.name == "_unique2") {
    const auto results = [&](bool wanted) { return wanted ? first.numel() : 0; };
    return {
        empty_strided_on(device, {first.numel()}, {1}, first.scalar_type()),
        empty_strided_on(device, {results(arguments[2].toBool())}, {1}, at::kLong),
        empty_strided_on(device, {results(arguments[3].toBool())}, {1}, at::kLong)};
  }
  C10_THROW_ERROR(
      NotImplementedError,
      "the simulated card cannot run " + operation.name + ": its result is as large as values say that are not known");
}

}  // namespace

Stack by_values(const Call& call, const Operation& operation, at::ArrayRef<c10::IValue> arguments) {
  if (call.all_known()) {
    const Stack found = call.on_cpu();
    Stack results;
    for (const c10::IValue& one : found) {
      results.push_back(changed(one, [&](const c10::IValue& value) -> c10::IValue {
        if (!value.isTensor() || !value.toTensor().defined()) {
          return value;
        }
        const at::Tensor& tensor = value.toTensor();
        at::Tensor moved =
            empty_strided_on(call.device(), tensor.sizes(), tensor.strides(), tensor.scalar_type());
        values_of(moved).copy_(tensor);
        written(moved, true);
        return moved;
      }));
    }
    return results;
  }
  if (operation.name == "masked_select" && knows(arguments[1].toTensor()) &&
      arguments[1].toTensor().numel() <= kMostElements) {
    // How many there are is for the mask alone to say.
    const at::Tensor& self = arguments[0].toTensor();
    const at::Tensor mask = values_of(arguments[1].toTensor());
    const auto shape = at::infer_size(self.sizes(), mask.sizes());
    return {empty_strided_on(call.device(), {mask.expand(shape).sum().item<int64_t>()}, {1}, self.scalar_type())};
  }
  at::Tensor first;
  call.each_read(0, [&](const at::Tensor& tensor) {
    if (!first.defined() && on_card(tensor)) {
      first = tensor;
    }
  });
  ask(Asked::kDecision, operation.name + " of " + described(first));
  return guessed(operation, arguments, first, call.device());
}

bool with_places(at::ArrayRef<c10::IValue> arguments, c10::IValue& indices) {
  const auto is_mask = [](const c10::IValue& one) {
    return one.isTensor() && one.toTensor().defined() &&
        (one.toTensor().scalar_type() == at::kBool || one.toTensor().scalar_type() == at::kByte);
  };
  const c10::List<c10::IValue> given = arguments[1].toList();
  bool found = false;
  c10::List<std::optional<at::Tensor>> places;
  for (const c10::IValue& one : given) {
    if (!is_mask(one)) {
      places.push_back(one.isTensor() ? std::optional<at::Tensor>(one.toTensor()) : std::nullopt);
      continue;
    }
    found = true;
    const at::Tensor all = at::nonzero(one.toTensor());
    for (int64_t dim = 0; dim < one.toTensor().dim(); ++dim) {
      places.push_back(all.select(1, dim));
    }
  }
  indices = places;
  return found;
}

bool fills_mask(const Operation& operation, at::ArrayRef<c10::IValue> arguments, at::Tensor& mask) {
  if (operation.name != "_index_put_impl_" || arguments[3].toBool() || arguments[2].toTensor().numel() != 1 ||
      !arguments[2].toTensor().device().is_cpu()) {
    return false;
  }
  int64_t dims = 0;
  for (const c10::IValue& one : arguments[1].toListRef()) {
    if (!one.isTensor() || !one.toTensor().defined()) {
      ++dims;
    } else if (mask.defined() || one.toTensor().scalar_type() != at::kBool) {
      return false;
    } else {
      mask = one.toTensor();
      for (int64_t dim = 0; dim < dims; ++dim) {
        mask = mask.unsqueeze(0);
      }
      dims += mask.dim();
    }
  }
  while (mask.defined() && mask.dim() < arguments[0].toTensor().dim()) {
    mask = mask.unsqueeze(-1);
  }
  return mask.defined();
}

}  // namespace memleak
