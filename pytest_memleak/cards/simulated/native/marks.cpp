// Values that nobody computed, once they are on the CPU.
//
// A tensor there that was copied from what is unknown on the card, or made from such a copy, has one dispatch key more: one
// that torch has no use for, and that is asked before all others. So every operation on it comes by here. Views, detached
// tensors and `.data` have the key as well, since torch copies a tensor's keys with it.

#include "marks.h"

#include "generators.h"
#include "host.h"
#include "kernels.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/alias.h>
#include <ATen/ops/is_nonzero.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <optional>
#include <vector>

namespace memleak {
namespace marks {

constexpr c10::DispatchKey kMark = c10::DispatchKey::TESTING_ONLY_GenericWrapper;

// torch's own way to a tensor's keys is for the tensor alone.
struct Keys final : c10::TensorImpl {
  static c10::DispatchKeySet& of(const at::TensorBase& tensor) {
    return tensor.unsafeGetTensorImpl()->*(&Keys::key_set_);
  }
};

// Whether an operation that is not put together from others is running. What it reads goes into its results, and they are
// marked for it; an error is noticed; and what it makes of temporaries is its own business.
thread_local int running = 0;

class Running {
 public:
  Running() {
    ++running;
  }
  ~Running() {
    --running;
  }
};

// What a program may read: not what stands in for a tensor in a trace, nor what another library made of it.
bool readable(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().is_cpu() && !tensor.unsafeGetTensorImpl()->is_python_dispatch();
}

bool shared(const at::Tensor& tensor) {
  return tensor.has_storage() && tensor.storage().use_count() > 1;
}

// Whether the operation takes such arguments, whatever their values.
bool runs_without_values(const c10::OperatorHandle& op, at::ArrayRef<c10::IValue> arguments) {
  Stack stack;
  for (const c10::IValue& argument : arguments) {
    stack.push_back(changed(argument, [](const c10::IValue& value) -> c10::IValue {
      if (value.isTensor() && value.toTensor().defined()) {
        return value.toTensor().to(at::kMeta);
      }
      return value.isDevice() ? c10::IValue(c10::Device(at::kMeta)) : value;
    }));
  }
  try {
    op.callBoxed(&stack);
  } catch (const c10::NotImplementedError&) {
    // Nobody can tell.
  } catch (const std::exception&) {
    return false;
  }
  return true;
}

void run_below(
    const c10::OperatorHandle& op, const Operation& operation, c10::DispatchKeySet keys, bool is_known, Stack* stack) {
  const Running running;
  if (is_known) {
    op.redispatchBoxed(keys, stack);
    return;
  }
  const auto last = torch::jit::last(*stack, op.schema().arguments().size());
  const Stack arguments(last.begin(), last.end());
  try {
    op.redispatchBoxed(keys, stack);
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const c10::Error&) {
    // Whether that was for their values, which could not be seen in any other way.
    if (runs_without_values(op, arguments)) {
      ask(Asked::kDecision, operation.name + ", which failed");
    }
    throw;
  }
}

// A gradient of what nobody knows is unknown, too. torch keeps results for the backward pass before they are marked here.
void mark_gradients(const at::Tensor& tensor) {
  if (const at::Tensor forward = tensor._fw_grad(/*level=*/0); forward.defined()) {
    mark(forward);
  }
  if (tensor.requires_grad() && c10::GradMode::is_enabled()) {
    tensor.register_hook([](const at::Tensor& gradient) {
      if (!readable(gradient) || marked(gradient)) {
        return gradient;
      }
      const at::Tensor own = at::alias(gradient);
      mark(own);
      return own;
    });
  }
}

void follow(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  keys = keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, kMark);
  const Operation& operation = look_up(op);
  const size_t count = op.schema().arguments().size();
  for (const size_t index : operation.decided_by) {
    bool decides = false;
    each_tensor(torch::jit::peek(*stack, index, count), [&](const at::Tensor& tensor) {
      if (!decides && !knows(tensor)) {
        decides = true;
        ask(Asked::kDecision, operation.name + " of " + described(tensor));
      }
    });
  }
  if (operation.composite) {
    op.redispatchBoxed(keys, stack);  // its parts come by here
    return;
  }
  const auto last = torch::jit::last(*stack, count);
  const Stack arguments(last.begin(), last.end());
  bool is_known = true;
  std::vector<at::Tensor> written;
  for (size_t index = 0; index < count; ++index) {
    each_tensor(arguments[index], [&](const at::Tensor& tensor) {
      is_known = is_known && (!operation.is_read[index] || knows(tensor));
      if (operation.writes(arguments, index)) {
        written.push_back(tensor);
      }
    });
  }
  const std::optional<bool> truth = is_known ? std::nullopt : certain(operation, arguments);
  if (!run_on_shapes(op, operation, stack)) {
    run_below(op, operation, keys, is_known, stack);
  }
  const auto results = torch::jit::last(*stack, op.schema().returns().size());
  if (truth) {
    const c10::impl::ExcludeDispatchKeyGuard unseen(c10::autograd_dispatch_keyset_with_ADInplaceOrView.add(kMark));
    for (const c10::IValue& one : results) {
      each_tensor(one, [&](const at::Tensor& tensor) {
        if (!is_left_alone(tensor)) {
          tensor.fill_(*truth);
        }
      });
    }
    is_known = true;
  }
  for (const at::Tensor& tensor : written) {
    if (!readable(tensor)) {
      continue;
    }
    if (is_left_alone(tensor)) {
      note_written(tensor);  // it stays marked: what was written is not there
    } else if (is_known) {
      unmark_written(tensor);
    } else {
      mark_written(tensor);
      mark_gradients(tensor);
    }
  }
  if (is_known || operation.makes_own_values) {
    return;
  }
  for (size_t index = 0; index < results.size(); ++index) {
    each_tensor(results[index], [&](const at::Tensor& tensor) {
      if (readable(tensor) && operation.view_of[index] < 0 && !marked(tensor)) {
        mark(tensor);
        mark_gradients(tensor);
      }
    });
  }
}

// What is read of a marked tensor by whoever is not an operation's own kernel.
at::Scalar number(const at::Tensor& self) {
  if (running > 0) {
    const c10::impl::ExcludeDispatchKeyGuard unseen(kMark);
    return at::_local_scalar_dense(self);
  }
  return number_of(self);
}

bool truth(const at::Tensor& self) {
  if (running > 0) {
    const c10::impl::ExcludeDispatchKeyGuard unseen(kMark);
    return at::is_nonzero(self);
  }
  return truth_of(self);
}

// For Python: numbers that stood in for values went into this tensor.
void forget(const at::Tensor& tensor) {
  if (on_card(tensor)) {
    written(tensor, false);
  } else if (readable(tensor)) {
    mark_written(tensor);
  }
}

}  // namespace marks

bool marked(const at::Tensor& tensor) {
  return tensor.defined() && tensor.key_set().has(marks::kMark);
}

void mark(const at::Tensor& tensor) {
  c10::DispatchKeySet& keys = marks::Keys::of(tensor);
  keys = keys.add(marks::kMark);
}

void mark_written(const at::Tensor& tensor) {
  if (marked(tensor)) {
    return;
  }
  mark(tensor);
  if (marks::running > 0) {
    return;
  }
  if (tensor.is_view()) {
    mark(at::Tensor(tensor._base()));
  } else if (marks::shared(tensor)) {
    ask(Asked::kDecision, described(tensor) + ", written where other tensors may read it");
  }
}

void unmark_written(const at::Tensor& tensor) {
  if (!marked(tensor)) {
    return;
  }
  c10::DispatchKeySet& keys = marks::Keys::of(tensor);
  keys = keys.remove(marks::kMark);
  if (tensor.is_view() && tensor._base().numel() == tensor.numel()) {
    c10::DispatchKeySet& all = marks::Keys::of(tensor._base());
    all = all.remove(marks::kMark);
  }
}

at::Generator generator_of(int64_t device) {
  return default_generator(static_cast<c10::DeviceIndex>(device));
}

void follow_marks() {
  static torch::Library* everywhere = nullptr;
  if (everywhere != nullptr) {
    return;
  }
  everywhere = new torch::Library(torch::Library::IMPL, "_", marks::kMark, __FILE__, __LINE__);
  everywhere->fallback(torch::CppFunction::makeFromBoxedFunction<&marks::follow>());
  static auto* const of_torch = new torch::Library(torch::Library::IMPL, "aten", marks::kMark, __FILE__, __LINE__);
  of_torch->impl("_local_scalar_dense", TORCH_FN(marks::number));
  of_torch->impl("is_nonzero", TORCH_FN(marks::truth));
  static auto* const own = new torch::Library(torch::Library::DEF, "memleak_card", std::nullopt, __FILE__, __LINE__);
  own->def("knows(Tensor self) -> bool", TORCH_FN(knows));
  own->def("default_generator(int device) -> Generator?", TORCH_FN(generator_of));
  own->def("forget(Tensor self) -> ()", TORCH_FN(marks::forget));
  own->def("mapped(Tensor self) -> ()", TORCH_FN(take_mapped));
}

}  // namespace memleak
