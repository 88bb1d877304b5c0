// Operations on large tensors of the CPU while a rank is played: their results by shapes, and no memory touched.

#include "call.h"
#include "host.h"
#include "values.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace memleak {
namespace host {

// Some of it large, all of it on the CPU, and nothing that autograd has to know of.
bool by_shapes(const Operation& operation, at::ArrayRef<c10::IValue> arguments) {
  if (operation.only_views || operation.makes_own_values || operation.shape_from_values ||
      !operation.decided_by.empty() ||
      one_of(operation.name, {"new_empty", "resize_", "set_", "_local_scalar_dense", "is_nonzero", "equal", "item"})) {
    return false;
  }
  bool large = false, others = false;
  for (const c10::IValue& argument : arguments) {
    each_tensor(argument, [&](const at::Tensor& tensor) {
      others = others || !readable_on_host(tensor) || (tensor.requires_grad() && c10::GradMode::is_enabled());
      large = large || is_left_alone(tensor);
    });
    others = others || (argument.isDevice() && !argument.toDevice().is_cpu());
  }
  return large && !others;
}

}  // namespace host

bool run_on_shapes(const c10::OperatorHandle& op, const Operation& operation, Stack* stack) {
  if (!host_is_played()) {
    return false;
  }
  const size_t count = op.schema().arguments().size();
  const auto last = torch::jit::last(*stack, count);
  const Stack arguments(last.begin(), last.end());
  if (!host::by_shapes(operation, arguments)) {
    return false;
  }
  std::vector<std::pair<at::Tensor, at::Tensor>> originals;
  Stack found;
  {
    const c10::impl::ExcludeDispatchKeyGuard unseen(
        c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot}));
    for (const c10::IValue& argument : arguments) {
      found.push_back(changed(argument, [&](const c10::IValue& value) -> c10::IValue {
        if (value.isDevice()) {
          return c10::Device(at::kMeta);
        }
        if (!value.isTensor() || !value.toTensor().defined()) {
          return value.isGenerator() ? c10::IValue() : value;
        }
        const at::Tensor& tensor = value.toTensor();
        for (const auto& [one, original] : originals) {
          if (original.is_same(tensor)) {
            return one;
          }
        }
        originals.emplace_back(
            at::detail::empty_strided_meta(tensor.sizes(), tensor.strides(), tensor.scalar_type()), tensor);
        return originals.back().first;
      }));
    }
    try {
      op.callBoxed(&found);
    } catch (const c10::NotImplementedError&) {
      return false;  // its results have no shapes without values: it is run for real
    }
  }
  Stack results;
  for (const c10::IValue& one : found) {
    results.push_back(changed(one, [&](const c10::IValue& value) -> c10::IValue {
      if (!value.isTensor() || !value.toTensor().defined() || !value.toTensor().is_meta()) {
        return value;
      }
      const at::Tensor& shape = value.toTensor();
      for (const auto& [shadow, original] : originals) {
        if (shadow.is_same(shape)) {
          return original;
        }
      }
      at::Tensor made =
          at::empty_strided(shape.sizes(), shape.strides(), shape.options().device(at::kCPU).requires_grad(false));
      if (is_left_alone(made)) {
        note_written(made);
      } else if (made.numel() > 0) {
        made.fill_(placeholder(made.scalar_type()));
      }
      return made;
    }));
  }
  torch::jit::drop(*stack, count);
  for (c10::IValue& one : results) {
    stack->push_back(std::move(one));
  }
  return true;
}

}  // namespace memleak
