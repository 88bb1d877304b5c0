// What the simulated card does for an operation: results of the right shape in memory of the right size, and values
// where they are known.
//
// Sizes come from torch's own shape functions: the operation is run on tensors of the meta device. Everything that torch
// puts together from other operations arrives here in pieces, as it would on a card. In C++ and not in Python, because a
// tensor that Python has seen counts one more reference, and autograd then adds gradients in another way.


#include "generators.h"
#include "kernels.h"
#include "marks.h"

#include <torch/library.h>

#include <map>
#include <memory>
#include <string>

namespace memleak {
namespace {

int64_t elements_of(const Stack& results) {
  int64_t elements = 0;
  for (const c10::IValue& one : results) {
    each_tensor(one, [&](const at::Tensor& tensor) { elements += tensor.numel(); });
  }
  return elements;
}

// What the CPU computed, as values of the results.
void take_over(const Call& call, const Operation& operation, const Stack& results, const Stack& found) {
  for (size_t index = 0; index < results.size() && index < found.size(); ++index) {
    std::vector<at::Tensor> to, from;
    each_tensor(results[index], [&](const at::Tensor& tensor) { to.push_back(tensor); });
    each_tensor(found[index], [&](const at::Tensor& tensor) { from.push_back(tensor); });
    for (size_t one = 0; one < to.size() && one < from.size(); ++one) {
      if (!on_card(to[one])) {
        continue;
      }
      if (to[one].sizes() != from[one].sizes()) {
        written(to[one], false);
        continue;
      }
      const at::Tensor values = values_of(to[one]);
      if (values.data_ptr() == from[one].data_ptr()) {
        continue;  // written where it is
      }
      values.copy_(from[one]);
      if (operation.view_of[index] < 0 && !call.is_argument(to[one])) {
        learn_values(to[one].storage().data());  // what may be around it is nobody's business
      } else {
        written(to[one], true);
      }
    }
  }
}

void compute(const Call& call, const Operation& operation, const Stack& results) {
  Stack found;
  try {
    if (operation.random) {
      const OwnRandomness own(call.generator());
      found = call.on_cpu(results);
    } else {
      found = call.on_cpu(results);
    }
  } catch (const c10::Error& error) {
    call.each_written([](const at::Tensor& tensor) { written(tensor, false); });
    raise_as_card(error);
    return;  // no such kernel for the CPU, or not for this dtype: it stays unknown
  }
  call.each_written([](const at::Tensor& tensor) { written(tensor, true); });
  take_over(call, operation, results, found);
}

void run(const c10::OperatorHandle& op, Stack* stack) {
  const WithoutPythonFunctions without;
  const Operation& operation = look_up(op);
  const size_t count = op.schema().arguments().size();
  if (operation.takes_cpu) {
    const auto given = torch::jit::last(*stack, count);
    at::Tensor mask;
    if (fills_mask(operation, given, mask)) {
      given[0].toTensor().masked_fill_(mask, given[2].toTensor().item());
      const c10::IValue self = given[0];
      torch::jit::drop(*stack, count);
      stack->push_back(self);
      return;
    }
    c10::IValue places;
    if (with_places(given, places)) {
      (*stack)[stack->size() - count + 1] = std::move(places);
    }
  }
  Stack results;
  {
    const auto arguments = torch::jit::last(*stack, count);
    Call call(op, operation, arguments);
    const OnDevice on(call.device());
    const at::Generator generator = operation.random ? call.generator() : at::Generator();
    if (operation.refusals.types != nullptr) {
      operation.refusals.types({op.schema(), arguments, {}});
    }
    const Kept kept = operation.scratch.before ? operation.scratch.before({op.schema(), arguments, {}}) : Kept();
    if (operation.shape_from_values) {
      results = by_values(call, operation, arguments);
    } else {
      const bool known_before = call.all_known();
      const std::optional<bool> truth = known_before ? std::nullopt : certain(operation, arguments);
      const Stack shapes = call.on_meta();
      if (operation.refusals.places != nullptr) {
        operation.refusals.places({op.schema(), arguments, {}});
      }
      results = call.on_card_again(shapes);
      if (operation.only_views) {
        // Whoever knows the memory knows the view.
      } else if (truth) {
        for (const c10::IValue& one : results) {
          each_tensor(one, [&](const at::Tensor& tensor) {
            if (tensor.numel() > kMostElements) {
              written_alike(tensor, *truth);
            } else {
              values_of(tensor).fill_(*truth);
              written(tensor, true);
            }
          });
        }
      } else if (known_before && elements_of(results) <= kMostElements) {
        compute(call, operation, results);
      } else {
        call.each_written([](const at::Tensor& tensor) { written(tensor, false); });
      }
      if (operation.product) {
        take_workspace(call.device(), false);
        if (operation.name == "addmm" && arguments[0].toTensor().dim() == 1) {
          take_workspace(call.device(), true);
        }
      }
    }
    if (generator.defined()) {
      advance(generator);
    }
    if (operation.scratch.after) {
      operation.scratch.after({op.schema(), arguments, results});
    }
    if (operation.margin.share != 0 || operation.margin.bytes != 0) {
      tell_margin(operation.margin, operation.name, {op.schema(), arguments, results}, call.device());
    }
  }
  torch::jit::drop(*stack, count);
  for (c10::IValue& one : results) {
    stack->push_back(std::move(one));
  }
}

std::unique_ptr<torch::Library> everywhere;
std::map<std::string, std::unique_ptr<torch::Library>> libraries;

torch::Library& library_of(const std::string& name_space) {
  std::unique_ptr<torch::Library>& found = libraries[name_space];
  if (found == nullptr) {
    found = std::make_unique<torch::Library>(
        torch::Library::IMPL, name_space, c10::DispatchKey::CUDA, __FILE__, __LINE__);
  }
  return *found;
}

}  // namespace

void kernels_on() {
  everywhere =
      std::make_unique<torch::Library>(torch::Library::IMPL, "_", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  everywhere->fallback(torch::CppFunction::makeFromBoxedFunction<&run>());
  torch::Library& aten = library_of("aten");
  aten.impl("copy_", TORCH_FN(copy_));
  aten.impl("_local_scalar_dense", TORCH_FN(number_of));
  aten.impl("is_nonzero", TORCH_FN(truth_of));
  aten.impl("_fused_sdp_choice", TORCH_FN(attention_choice));
  attention_on();
  follow_marks();
}

void kernels_off() {
  attention_off();
  libraries.clear();
  everywhere.reset();
}

}  // namespace memleak

extern "C" {

using namespace memleak;

// An operation that torch or another library does in some other way goes to the kernel of all operations, too.
void memleak_card_take_over(const char* name_space, const char* name) {
  const Unwarned unwarned;
  library_of(name_space).impl(name, torch::CppFunction::makeFromBoxedFunction<&run>());
}
}
