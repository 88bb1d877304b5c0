// An operation run on other tensors than its own: on tensors without memory for the shapes of its results, on the CPU for
// their values.

#include "call.h"

#include "generators.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>

namespace memleak {
namespace {

// The memory of `base` as `found` sees that of what stands for it, which begins where its storage does. Complex numbers
// may be pairs of real ones there, or bytes another type.
at::Tensor view_of(const at::Tensor& base, const at::Tensor& found) {
  const auto size = static_cast<int64_t>(base.itemsize()), other = static_cast<int64_t>(found.itemsize());
  at::Tensor one = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(base.storage()), base.key_set(), found.dtype());
  one.unsafeGetTensorImpl()->set_sizes_and_strides(
      found.sizes(), found.strides(), base.storage_offset() * size / other + found.storage_offset());
  one._set_conj(found.is_conj());
  one._set_neg(found.is_neg());
  return one;
}

}  // namespace

Call::Call(const c10::OperatorHandle& op, const Operation& operation, at::ArrayRef<c10::IValue> arguments)
    : op_(op), operation_(operation), arguments_(arguments), device_(kCard, current_device()) {
  bool found = false;
  for (const c10::IValue& argument : arguments) {
    each_tensor(argument, [&](const at::Tensor& tensor) {
      if (!on_card(tensor)) {
        return;
      }
      if (!found) {
        device_ = tensor.device();
        found = true;
      } else if (on_card(tensor) && !operation.one_by_one) {
        check_device(tensor);
      }
      if (is_elsewhere(tensor)) {
        ask(Asked::kElsewhere, described(tensor));
      }
    });
    if (!found && argument.isDevice() && argument.toDevice().type() == kCard && argument.toDevice().has_index()) {
      device_ = argument.toDevice();
    }
  }
}

void Call::check_device(const at::Tensor& tensor) const {
  TORCH_CHECK(
      tensor.device() == device_,
      "Expected all tensors to be on the same device, but found at least two devices, ",
      device_,
      " and ",
      tensor.device(),
      "! (in ",
      op_.schema().name(),
      ")");
}

at::Generator Call::generator() const {
  for (const c10::IValue& argument : arguments_) {
    if (argument.isGenerator() && argument.toGenerator().defined()) {
      const at::Generator found = argument.toGenerator();
      TORCH_CHECK(
          found.device().type() == kCard,
          "Expected a 'cuda' device type for generator but found '",
          found.device().type(),
          "'");
      return found;
    }
  }
  return default_generator(device_.index());
}

Stack Call::on_meta() {
  Stack stack;
  for (size_t index = 0; index < arguments_.size(); ++index) {
    stack.push_back(changed(arguments_[index], [&](const c10::IValue& value) {
      return shadow(value, operation_.hands_back && op_.schema().arguments()[index].is_out());
    }));
  }
  try {
    op_.callBoxed(&stack);
  } catch (const c10::NotImplementedError&) {
    return without_shape_function();
  }
  return stack;
}

// A result that is handed in gets memory of its own: kernels resize it on their way, to what they need in between.
Stack Call::arguments_on_cpu() const {
  Stack stack;
  for (size_t index = 0; index < arguments_.size(); ++index) {
    const bool is_result = operation_.hands_back && op_.schema().arguments()[index].is_out();
    stack.push_back(changed(arguments_[index], [&](const c10::IValue& value) -> c10::IValue {
      if (value.isTensor() && is_result && on_card(value.toTensor())) {
        return at::empty({0}, value.toTensor().options().device(at::kCPU).requires_grad(false));
      }
      if (value.isTensor()) {
        return on_card(value.toTensor()) ? values_of(value.toTensor()) : value.toTensor();
      }
      if (value.isDevice()) {
        return value.toDevice().type() == kCard ? c10::Device(at::kCPU) : value.toDevice();
      }
      return c10::IValue();  // a generator of the card
    }));
  }
  return stack;
}

Stack Call::on_cpu() const {
  Stack stack = arguments_on_cpu();
  op_.callBoxed(&stack);
  return stack;
}

Stack Call::on_cpu(const Stack& results) const {
  return operation_.by_hand != nullptr ? operation_.by_hand(op_.schema(), arguments_on_cpu(), results) : on_cpu();
}

Stack Call::on_card_again(const Stack& found) {
  Stack results(found.size());
  std::vector<c10::Device> devices;
  if (operation_.one_by_one) {
    each_tensor(arguments_[0], [&](const at::Tensor& tensor) { devices.push_back(tensor.device()); });
  }
  std::vector<size_t> order = operation_.order;
  if (operation_.scratch.first_is_last != nullptr &&
      operation_.scratch.first_is_last({op_.schema(), arguments_, {}})) {
    std::rotate(order.begin(), order.begin() + 1, order.end());
  }
  for (const size_t index : order) {
    if (operation_.cudnn_attention && index == 1 && !arguments_[4].toBool()) {
      results[index] = at::Tensor();  // the logarithms of the sums are for a backward pass
      continue;
    }
    if (index >= operation_.on_cpu_from && found[index].isTensor()) {
      const at::Tensor& one = found[index].toTensor();
      results[index] = at::empty_strided(one.sizes(), one.strides(), one.options().device(at::kCPU));
      continue;
    }
    const int view = operation_.view_of[index];
    size_t place = 0;
    results[index] = changed(found[index], [&](const c10::IValue& value) -> c10::IValue {
      if (place < devices.size()) {
        device_ = devices[place++];
      }
      return value.isTensor() ? result(value.toTensor(), view) : value;
    });
    if (operation_.scratch.with_result != nullptr) {
      operation_.scratch.with_result({op_.schema(), arguments_, results}, index);
    }
  }
  return results;
}

bool Call::all_known() const {
  int64_t elements = 0;
  bool found = true;
  const bool sums = operation_.factor_of_self != SIZE_MAX && !arguments_[operation_.factor_of_self].toScalar().equal(0);
  const size_t first = operation_.factor_of_self == SIZE_MAX || sums ? 0 : 1;
  each_read(first, [&](const at::Tensor& tensor) {
    elements += on_card(tensor) ? tensor.numel() : 0;
    found = found && elements <= kMostElements && knows(tensor);
  });
  return found;
}

bool Call::is_argument(const at::Tensor& tensor) const {
  return std::any_of(originals_.begin(), originals_.end(), [&](const auto& entry) {
    return entry.second.is_same(tensor);
  });
}

// What is handed in for a result has no elements there: torch's functions warn of others that do not fit, and some of them
// go another way to a result than the kernels do.
c10::IValue Call::shadow(const c10::IValue& value, bool is_result) {
  if (value.isGenerator()) {
    return c10::IValue();
  }
  if (value.isDevice()) {
    return value.toDevice().type() == kCard ? c10::Device(at::kMeta) : value.toDevice();
  }
  const at::Tensor& tensor = value.toTensor();
  if (!tensor.defined()) {
    return tensor;
  }
  if (on_card(tensor)) {
    for (const auto& [one, original] : originals_) {
      if (original.is_same(tensor)) {
        return one;
      }
    }
    at::Tensor one = is_result
        ? at::detail::empty_strided_meta({0}, {1}, tensor.scalar_type())
        : at::detail::empty_strided_meta(tensor.sizes(), tensor.strides(), tensor.scalar_type());
    one._set_conj(tensor.is_conj());
    one._set_neg(tensor.is_neg());
    originals_.emplace_back(one, tensor);
    return one;
  }
  if (tensor.device().is_cpu() && tensor.dim() > 0) {
    if (!operation_.takes_cpu) {
      check_device(tensor);
    }
    return at::detail::empty_strided_meta(tensor.sizes(), tensor.strides(), tensor.scalar_type());
  }
  return tensor;
}

at::Tensor Call::result(const at::Tensor& found, int view) {
  if (!found.defined()) {
    return found;
  }
  for (const auto& [one, original] : originals_) {
    if (one.is_same(found)) {
      if (original.sizes() != found.sizes()) {
        original.resize_(found.sizes());
      }
      return original;
    }
  }
  if (!found.is_meta()) {
    return found;
  }
  if (view >= 0 && arguments_[view].isTensor()) {
    return view_of(arguments_[view].toTensor(), found);
  }
  const auto elements = operation_.scratch.elements;
  if (const int64_t count = elements == nullptr ? 0 : elements({op_.schema(), arguments_, {}}); count > 0) {
    at::Tensor made = empty_strided_on(device_, {count}, {1}, found.scalar_type());
    made.unsafeGetTensorImpl()->set_sizes_and_strides(found.sizes(), found.strides());
    return made;
  }
  return empty_strided_on(device_, found.sizes(), found.strides(), found.scalar_type());
}

// An operation that only writes to its arguments has the shapes it was given.
Stack Call::without_shape_function() {
  Stack results;
  const auto& returns = op_.schema().returns();
  size_t next = 0;
  for (size_t index = 0; index < returns.size(); ++index) {
    const c10::AliasInfo* const alias = returns[index].alias_info();
    while (next < arguments_.size() && !operation_.is_written[next]) {
      ++next;
    }
    if (alias == nullptr || !alias->isWrite() || next == arguments_.size()) {
      const std::string name = c10::toString(op_.operator_name());
      ask(Asked::kOperation, name);
      C10_THROW_ERROR(
          NotImplementedError,
          "the simulated card cannot run " + name + ": this torch has no shape function for it");
    }
    results.push_back(changed(arguments_[next++], [&](const c10::IValue& value) { return shadow(value, false); }));
  }
  return results;
}

}  // namespace memleak
