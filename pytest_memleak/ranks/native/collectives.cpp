// What collectives do on a rank that is played, whose peers are not there: nothing but to forget what was received.
//
// torch's fake process group leaves what it is given as it is, or copies this rank's values to where others' would be.
// Neither may pose as what peers sent: every tensor that is received counts as unknown, on the card and on the CPU. Memory
// that NCCL takes from torch's allocator on its way is taken here as well.
//
// Built on first use by native.py. The simulated card's own library has to be there.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

namespace {

using torch::jit::Stack;
using Tensors = std::vector<at::Tensor>;

// Done when it returns.
struct Done final : c10d::Work {
  explicit Done(Tensors results) : results_(std::move(results)) {}
  bool isCompleted() override {
    return true;
  }
  bool isSuccess() const override {
    return true;
  }
  bool wait(std::chrono::milliseconds timeout = kNoTimeout) override {
    return true;
  }
  void synchronize() override {}
  Tensors result() override {
    return results_;
  }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
    auto future = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
    future->markCompleted(c10::IValue(results_));
    return future;
  }

 private:
  Tensors results_;
};

void gather_into(const c10::IValue& value, Tensors& found) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) {
      found.push_back(value.toTensor());
    }
  } else if (value.isList()) {
    for (const c10::IValue& one : value.toListRef()) {
      gather_into(one, found);
    }
  }
}

Tensors tensors_in(const c10::IValue& value) {
  Tensors found;
  gather_into(value, found);
  return found;
}

void forget(const at::Tensor& tensor) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("memleak_card::forget", "")
                             .typed<void(const at::Tensor&)>();
  op.call(tensor);
}

bool same_sizes(const Tensors& tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [&](const at::Tensor& one) {
    return one.sizes() == tensors.front().sizes() && one.scalar_type() == tensors.front().scalar_type();
  });
}

// NCCL's collectives of lists go through one tensor that has room for all, from torch's allocator.
void through_one(const Tensors& tensors) {
  if (tensors.empty() || !tensors.front().is_cuda() || !same_sizes(tensors)) {
    return;
  }
  std::vector<int64_t> sizes = tensors.front().sizes().vec();
  sizes.insert(sizes.begin(), static_cast<int64_t>(tensors.size()));
  const at::Tensor flat = at::empty(sizes, tensors.front().options().requires_grad(false));
}

void check(const std::string& name, const Tensors& outputs, const Tensors& inputs, int64_t size) {
  for (const Tensors* list : {&outputs, &inputs}) {
    for (const at::Tensor& one : *list) {
      TORCH_CHECK(!one.is_cuda() || one.is_non_overlapping_and_dense(), "Tensors must be contiguous");
    }
  }
  if (name == "_allgather_base_") {
    TORCH_CHECK(outputs[0].scalar_type() == inputs[0].scalar_type(),
                "output tensor must have the same type as input tensor");
    TORCH_CHECK_VALUE(outputs[0].numel() == inputs[0].numel() * size,
                      "output tensor size must be equal to world_size times input tensor size");
  } else if (name == "_reduce_scatter_base_") {
    TORCH_CHECK(outputs[0].scalar_type() == inputs[0].scalar_type(),
                "input tensor must be the same type as the output tensor.");
    TORCH_CHECK_VALUE(inputs[0].numel() == outputs[0].numel() * size,
                      "input tensor must be the same size as output size times world size");
  }
}

// In a group of one all is known that there is.
void alone(const Tensors& outputs, const Tensors& inputs) {
  const at::NoGradGuard without;
  for (size_t index = 0; index < std::min(outputs.size(), inputs.size()); ++index) {
    outputs[index].copy_(inputs[index].view_as(outputs[index]));
  }
}

struct Arguments {
  const c10::FunctionSchema& schema;
  at::ArrayRef<c10::IValue> values;

  const c10::IValue* of(const std::string& name) const {
    for (size_t index = 0; index < values.size(); ++index) {
      if (schema.arguments()[index].name() == name) {
        return &values[index];
      }
    }
    return nullptr;
  }
};

void exchange(const std::string& name, const Arguments& arguments, const Tensors& first) {
  const auto group = arguments.of("process_group")->toCustomClass<c10d::ProcessGroup>();
  const Tensors second = tensors_in(arguments.values[1]);
  check(name, first, second, group->getSize());
  const c10::IValue* const root = arguments.of("root_rank");
  const bool is_root = root != nullptr && root->toInt() == group->getRank();
  if (name == "send") {
    return;
  }
  if (group->getSize() == 1 && name != "barrier") {
    alone(first, second);
    return;
  }
  if (name == "barrier") {
    if (!first.empty() && first[0].is_cuda()) {
      const at::Tensor met = at::empty({1}, first[0].options().dtype(at::kFloat));
    }
    return;
  }
  if (name == "scatter_" && is_root) {
    const at::NoGradGuard without;
    first.at(0).copy_(second.at(static_cast<size_t>(group->getRank())));
    return;
  }
  if (name == "broadcast_" && is_root) {
    return;
  }
  if ((name == "reduce_" || name == "gather_") && !is_root) {
    return;
  }
  if (name == "allgather_") {
    through_one(first);
  } else if (name == "reduce_scatter_") {
    through_one(second);
  }
  for (const at::Tensor& one : first) {
    forget(one);
  }
}

void run(const c10::OperatorHandle& op, Stack* stack) {
  const c10::FunctionSchema& schema = op.schema();
  const size_t count = schema.arguments().size();
  const auto last = torch::jit::last(*stack, count);
  const Stack given(last.begin(), last.end());
  const std::string name = schema.name().substr(schema.name().find("::") + 2);
  const Tensors first = tensors_in(given[0]);
  exchange(name, {schema, given}, first);
  torch::jit::drop(*stack, count);
  for (const c10::Argument& result : schema.returns()) {
    if (result.type()->kind() == c10::TypeKind::ClassType) {
      stack->emplace_back(c10::intrusive_ptr<c10d::Work>(c10::make_intrusive<Done>(first)));
    } else {
      stack->push_back(given[0]);
    }
  }
}

// torch warns of a kernel that takes the place of another, which is the purpose here.
struct Silence final : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

std::vector<std::unique_ptr<torch::Library>> libraries;

}  // namespace

extern "C" {

// From now on every collective of this process is one of a rank without peers.
void memleak_ranks_on(void) {
  if (!libraries.empty()) {
    return;
  }
  Silence silence;
  const c10::WarningUtils::WarningHandlerGuard unwarned(&silence);
  for (const c10::DispatchKey key : {c10::DispatchKey::CPU, c10::DispatchKey::CUDA}) {
    libraries.push_back(std::make_unique<torch::Library>(torch::Library::IMPL, "c10d", key, __FILE__, __LINE__));
    for (const char* name :
         {"_allgather_base_", "_reduce_scatter_base_", "allgather_", "allgather_coalesced_",
          "allgather_into_tensor_coalesced_", "allreduce_", "allreduce_coalesced_", "alltoall_", "alltoall_base_",
          "barrier", "broadcast_", "gather_", "monitored_barrier_", "recv_", "recv_any_source_", "reduce_",
          "reduce_scatter_", "reduce_scatter_tensor_coalesced_", "scatter_", "send"}) {
      if (c10::Dispatcher::singleton().findSchema({std::string("c10d::") + name, ""})) {
        libraries.back()->impl(name, torch::CppFunction::makeFromBoxedFunction<&run>());
      }
    }
  }
}

void memleak_ranks_off(void) {
  libraries.clear();
}
}
