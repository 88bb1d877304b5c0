// What the simulated card does for an operation: results of the right shape in memory of the right size, and values
// where they are known.
//
// Sizes come from torch's own shape functions: the operation is run on tensors of the meta device. Everything that torch
// puts together from other operations arrives here in pieces, as it would on a card. In C++ and not in Python, because a
// tensor that Python has seen counts one more reference, and autograd then adds gradients in another way.

#include "card.h"
#include "scratch.h"

#include <ATen/EmptyTensor.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/as_strided.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ExpandUtils.h>
#include <ATen/ops/nonzero.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace memleak {
namespace {

using Stack = torch::jit::Stack;

// Of all tensors of an operation together; beyond, its values are not computed.
constexpr int64_t kMostElements = int64_t{1} << 18;

// ---- values ------------------------------------------------------------------------------------------------------

enum class Asked : int { kNumber = 0, kDecision = 1, kOperation = 2, kElsewhere = 3 };
using Unknown = double (*)(int asked, const char* what);

Unknown unknown = nullptr;
bool values_possible = false;
std::mutex known_mutex;
std::unordered_set<const void*> known;

std::string described(const at::Tensor& tensor) {
  std::string text = c10::toString(tensor.scalar_type());
  text += " [";
  for (size_t index = 0; index < static_cast<size_t>(tensor.dim()); ++index) {
    text += (index ? ", " : "") + std::to_string(tensor.size(static_cast<int64_t>(index)));
  }
  return text + "]";
}

double ask(Asked asked, const std::string& what) {
  const InPython in_python;
  return unknown(static_cast<int>(asked), what.c_str());
}

bool knows(const at::Tensor& tensor) {
  const c10::Storage& storage = tensor.storage();
  if (storage.nbytes() == 0) {
    return true;
  }
  const std::lock_guard<std::mutex> lock(known_mutex);
  return known.count(storage.data()) > 0;
}

void written(const at::Tensor& tensor, bool is_known) {
  if (!tensor.defined() || tensor.device().type() != kCard) {
    return;
  }
  const c10::Storage& storage = tensor.storage();
  const std::lock_guard<std::mutex> lock(known_mutex);
  if (!is_known) {
    known.erase(storage.data());
  } else if (
      values_possible && tensor.is_non_overlapping_and_dense() &&
      static_cast<size_t>(tensor.numel()) * tensor.itemsize() == storage.nbytes()) {
    known.insert(storage.data());
  }
}

// The same memory, to be read and written by the CPU.
at::Tensor values_of(const at::Tensor& tensor) {
  return at::from_blob(
      tensor.unsafeGetTensorImpl()->mutable_data(),
      tensor.sizes(),
      tensor.strides(),
      tensor.options().device(at::kCPU).requires_grad(false));
}

// Random numbers that leave the program's own alone, as a card's generator does.
class OwnRandomness {
 public:
  OwnRandomness() : lock_(mutex()), generator_(at::detail::getDefaultCPUGenerator()) {
    theirs_ = generator_.get_state();
    if (ours().defined()) {
      generator_.set_state(ours());
    } else {
      generator_.set_current_seed(0);
    }
  }
  ~OwnRandomness() {
    if (ours().defined()) {
      ours().copy_(generator_.get_state());
    } else {
      ours() = generator_.get_state();
    }
    generator_.set_state(theirs_);
  }

 private:
  static std::mutex& mutex() {
    static std::mutex* const one = new std::mutex();
    return *one;
  }
  static at::Tensor& ours() {
    static at::Tensor* const state = new at::Tensor();
    return *state;
  }
  std::lock_guard<std::mutex> lock_;
  at::Generator generator_;
  at::Tensor theirs_;
};

// ---- what a schema says ------------------------------------------------------------------------------------------

struct Operation {
  std::string name;
  std::vector<bool> is_read;
  std::vector<bool> is_written;
  std::vector<int> view_of;  // for each result the argument that it is a view of, or -1
  std::vector<size_t> order;  // in which the results get their memory
  bool random = false;
  bool shape_from_values = false;
  bool takes_cpu = false;
  bool product = false;
  bool only_views = false;
  bool cudnn_attention = false;
  size_t on_cpu_from = SIZE_MAX;  // results from here on are the CPU's
  Scratch scratch;
};

bool one_of(const std::string& name, std::initializer_list<const char*> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

Operation read_schema(const c10::OperatorHandle& op) {
  const c10::FunctionSchema& schema = op.schema();
  Operation found;
  found.name = schema.name().substr(schema.name().find("::") + 2);
  const bool writes_only = one_of(
      found.name,
      {"fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_", "log_normal_", "geometric_",
       "cauchy_"});
  std::map<c10::Symbol, int> base;
  for (size_t index = 0; index < schema.arguments().size(); ++index) {
    const c10::Argument& argument = schema.arguments()[index];
    const c10::AliasInfo* const alias = argument.alias_info();
    const bool is_written = alias != nullptr && alias->isWrite();
    found.is_written.push_back(is_written);
    found.is_read.push_back(!is_written || (!argument.is_out() && !(index == 0 && writes_only)));
    if (alias != nullptr) {
      for (const c10::Symbol& label : alias->beforeSets()) {
        base[label] = is_written ? -1 : static_cast<int>(index);
      }
    }
  }
  for (const c10::Argument& result : schema.returns()) {
    int view = -1;
    if (const c10::AliasInfo* const alias = result.alias_info()) {
      for (const c10::Symbol& label : alias->beforeSets()) {
        const auto entry = base.find(label);
        view = entry == base.end() ? -1 : entry->second;
      }
    }
    found.view_of.push_back(view);
    found.order.push_back(found.order.size());
  }
  found.only_views = !found.view_of.empty() &&
      std::all_of(found.view_of.begin(), found.view_of.end(), [](int base) { return base >= 0; });
  found.random = op.hasTag(at::Tag::nondeterministic_seeded);
  found.shape_from_values = one_of(
      found.name,
      {"nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive",
       "unique_dim_consecutive", "bincount", "equal"}) ||
      (found.name == "repeat_interleave" && schema.overload_name() == "Tensor");
  found.takes_cpu =
      one_of(found.name, {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"});
  found.product = one_of(found.name, {"mm", "addmm", "bmm", "baddbmm", "_addmm_activation"});
  if (found.name == "_scaled_dot_product_cudnn_attention" && found.order.size() == 9) {
    found.order = {6, 7, 0, 1, 2, 3, 4, 5, 8};
    found.cudnn_attention = true;
  } else if (one_of(found.name, {"native_dropout", "quantize_4bit", "quantize_blockwise"})) {
    found.order = {1, 0};
  } else if (found.name == "int8_vectorwise_quant") {
    found.order = {1, 0, 2};
  } else if (found.name == "_scaled_dot_product_efficient_attention") {
    found.on_cpu_from = 2;  // the state of the random numbers
  }
  found.scratch = scratch_of(found.name);
  return found;
}

const Operation& look_up(const c10::OperatorHandle& op) {
  static std::mutex* const mutex = new std::mutex();
  static auto* const all = new std::unordered_map<const c10::FunctionSchema*, std::unique_ptr<Operation>>();
  const std::lock_guard<std::mutex> lock(*mutex);
  std::unique_ptr<Operation>& found = (*all)[&op.schema()];
  if (found == nullptr) {
    found = std::make_unique<Operation>(read_schema(op));
  }
  return *found;
}

// ---- one call ----------------------------------------------------------------------------------------------------

bool on_card(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kCard;
}

template <typename Each>
void each_tensor(const c10::IValue& value, const Each& each) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) {
      each(value.toTensor());
    }
  } else if (value.isList()) {
    for (const c10::IValue& one : value.toListRef()) {
      each_tensor(one, each);
    }
  } else if (value.isTuple()) {
    for (const c10::IValue& one : value.toTupleRef().elements()) {
      each_tensor(one, each);
    }
  }
}

// The value with every tensor and device put through `change`; lists keep their kind.
template <typename Change>
c10::IValue changed(const c10::IValue& value, const Change& change) {
  if (value.isTensor() || value.isDevice() || value.isGenerator()) {
    return change(value);
  }
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& one : value.toTensorVector()) {
      list.push_back(change(c10::IValue(one)).toTensor());
    }
    return list;
  }
  if (value.isList()) {
    c10::impl::GenericList list(value.toList().elementType());
    bool tensors = false;
    for (const c10::IValue& one : value.toListRef()) {
      tensors = tensors || one.isTensor();
      list.push_back(one.isTensor() ? change(one) : one);
    }
    return tensors ? c10::IValue(list) : value;
  }
  return value;
}

class Call {
 public:
  Call(const c10::OperatorHandle& op, const Operation& operation, at::ArrayRef<c10::IValue> arguments)
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

  c10::Device device() const {
    return device_;
  }

  // The results of the operation on tensors without memory.
  Stack on_meta() {
    Stack stack;
    for (const c10::IValue& argument : arguments_) {
      stack.push_back(changed(argument, [&](const c10::IValue& value) { return shadow(value); }));
    }
    try {
      op_.callBoxed(&stack);
    } catch (const c10::NotImplementedError&) {
      return without_shape_function();
    }
    return stack;
  }

  Stack on_cpu() const {
    Stack stack;
    for (const c10::IValue& argument : arguments_) {
      stack.push_back(changed(argument, [](const c10::IValue& value) -> c10::IValue {
        if (value.isTensor()) {
          return on_card(value.toTensor()) ? values_of(value.toTensor()) : value.toTensor();
        }
        if (value.isDevice()) {
          return value.toDevice().type() == kCard ? c10::Device(at::kCPU) : value.toDevice();
        }
        return c10::IValue();  // a generator of the card
      }));
    }
    op_.callBoxed(&stack);
    return stack;
  }

  // Tensors on the card for what came out on the meta device.
  Stack on_card_again(const Stack& found) {
    Stack results(found.size());
    for (const size_t index : operation_.order) {
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
      results[index] = changed(found[index], [&](const c10::IValue& value) -> c10::IValue {
        return value.isTensor() ? result(value.toTensor(), view) : value;
      });
      if (operation_.scratch.with_result != nullptr) {
        operation_.scratch.with_result({op_.schema(), arguments_, results}, index);
      }
    }
    return results;
  }

  bool all_known() const {
    int64_t elements = 0;
    bool found = true;
    each_read([&](const at::Tensor& tensor) {
      elements += tensor.numel();
      found = found && elements <= kMostElements && knows(tensor);
    });
    return found;
  }

  template <typename Each>
  void each_read(const Each& each) const {
    for (size_t index = 0; index < arguments_.size(); ++index) {
      if (operation_.is_read[index]) {
        each_tensor(arguments_[index], [&](const at::Tensor& tensor) {
          if (on_card(tensor)) {
            each(tensor);
          }
        });
      }
    }
  }

  template <typename Each>
  void each_written(const Each& each) const {
    for (size_t index = 0; index < arguments_.size(); ++index) {
      if (operation_.is_written[index]) {
        each_tensor(arguments_[index], each);
      }
    }
  }

  bool is_argument(const at::Tensor& tensor) const {
    return std::any_of(originals_.begin(), originals_.end(), [&](const auto& entry) {
      return entry.second.is_same(tensor);
    });
  }

 private:
  c10::IValue shadow(const c10::IValue& value) {
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
      at::Tensor one = at::detail::empty_strided_meta(tensor.sizes(), tensor.strides(), tensor.scalar_type());
      originals_.emplace_back(one, tensor);
      return one;
    }
    if (tensor.device().is_cpu() && tensor.dim() > 0) {
      TORCH_CHECK(
          operation_.takes_cpu,
          "Expected all tensors to be on the same device, but found at least two devices, ",
          device_,
          " and cpu! (in ",
          op_.schema().name(),
          ")");
      return at::detail::empty_strided_meta(tensor.sizes(), tensor.strides(), tensor.scalar_type());
    }
    return tensor;
  }

  at::Tensor result(const at::Tensor& found, int view) {
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
      const at::Tensor& base = arguments_[view].toTensor();
      return at::as_strided(
          base, found.sizes(), found.strides(), base.storage_offset() + found.storage_offset());
    }
    return empty_strided_on(device_, found.sizes(), found.strides(), found.scalar_type());
  }

  // An operation that only writes to its arguments has the shapes it was given.
  Stack without_shape_function() {
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
      results.push_back(changed(arguments_[next++], [&](const c10::IValue& value) { return shadow(value); }));
    }
    return results;
  }

  const c10::OperatorHandle& op_;
  const Operation& operation_;
  at::ArrayRef<c10::IValue> arguments_;
  c10::Device device_;
  std::vector<std::pair<at::Tensor, at::Tensor>> originals_;  // what stands for a tensor, and the tensor
};

// ---- workspaces --------------------------------------------------------------------------------------------------

std::mutex workspaces_mutex;
std::map<std::tuple<std::thread::id, c10::DeviceIndex, bool>, c10::DataPtr> workspaces;
std::vector<int64_t> workspace_sizes;

// What torch gives cuBLASLt, as recorded on an H200.
constexpr int64_t kLightWorkspace = int64_t{1} << 20;

// Each thread's first product on a card takes the workspace that torch gives cuBLAS; the first with a bias, which cuBLASLt
// adds in the same kernel, takes one for that.
void take_workspace(c10::Device device, bool light) {
  const auto key = std::make_tuple(std::this_thread::get_id(), device.index(), light);
  {
    const std::lock_guard<std::mutex> lock(workspaces_mutex);
    if (workspaces.count(key)) {
      return;
    }
  }
  const OnDevice on(device);
  c10::DataPtr taken = allocate(
      static_cast<size_t>(light ? kLightWorkspace : workspace_sizes.at(static_cast<size_t>(device.index()))));
  const std::lock_guard<std::mutex> lock(workspaces_mutex);
  workspaces.emplace(key, std::move(taken));
}

// ---- the kernel of all operations --------------------------------------------------------------------------------

int64_t elements_of(const Stack& results) {
  int64_t elements = 0;
  for (const c10::IValue& one : results) {
    each_tensor(one, [&](const at::Tensor& tensor) { elements += tensor.numel(); });
  }
  return elements;
}

// What the CPU computed, as values of the results.
void take_over(const Call& call, const Stack& results, const Stack& found) {
  for (size_t index = 0; index < results.size() && index < found.size(); ++index) {
    std::vector<at::Tensor> to, from;
    each_tensor(results[index], [&](const at::Tensor& tensor) { to.push_back(tensor); });
    each_tensor(found[index], [&](const at::Tensor& tensor) { from.push_back(tensor); });
    for (size_t one = 0; one < to.size() && one < from.size(); ++one) {
      if (on_card(to[one]) && !call.is_argument(to[one]) && to[one].sizes() == from[one].sizes()) {
        values_of(to[one]).copy_(from[one]);
        written(to[one], true);
      }
    }
  }
}

void compute(const Call& call, const Operation& operation, const Stack& results) {
  Stack found;
  try {
    if (operation.random) {
      const OwnRandomness own;
      found = call.on_cpu();
    } else {
      found = call.on_cpu();
    }
  } catch (const c10::Error&) {
    // No such kernel for the CPU, or not for this dtype: it stays unknown.
    call.each_written([](const at::Tensor& tensor) { written(tensor, false); });
    return;
  }
  call.each_written([](const at::Tensor& tensor) { written(tensor, true); });
  take_over(call, results, found);
}

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
  call.each_read([&](const at::Tensor& tensor) {
    if (!first.defined()) {
      first = tensor;
    }
  });
  ask(Asked::kDecision, operation.name + " of " + described(first));
  return guessed(operation, arguments, first, call.device());
}

// Masks among the indices are turned into places, which takes memory of its own; whether there were any.
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

// A number that is put where one mask says so is filled in.
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

// ---- what is certain without the values ----------------------------------------------------------------------------

bool known_to_be_all(const c10::IValue& value, bool truth) {
  if (!value.isTensor() || !on_card(value.toTensor()) || value.toTensor().scalar_type() != at::kBool) {
    return false;
  }
  const at::Tensor& tensor = value.toTensor();
  if (tensor.numel() > kMostElements || !knows(tensor)) {
    return false;
  }
  const at::Tensor values = values_of(tensor);
  return truth ? values.all().item<bool>() : !values.any().item<bool>();
}

// What all elements of the result are, whatever the unknown arguments hold: "true or unknown" is true, and numbers that
// nobody computed are taken to be finite.
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
  if (one_of(operation.name, {"bitwise_and", "bitwise_and_", "logical_and", "logical_and_", "__and__"})) {
    if (known_to_be_all(arguments[0], false) || known_to_be_all(arguments[1], false)) {
      return false;
    }
  }
  return std::nullopt;
}

class WithoutPythonFunctions {
 public:
  WithoutPythonFunctions() : before_(at::impl::PythonTorchFunctionTLS::get_disabled_state()) {
    at::impl::PythonTorchFunctionTLS::set_disabled_state(at::impl::TorchFunctionDisabledState::ALL_DISABLED);
  }
  ~WithoutPythonFunctions() {
    at::impl::PythonTorchFunctionTLS::set_disabled_state(before_);
  }

 private:
  at::impl::TorchFunctionDisabledState before_;
};

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
    const Kept kept = operation.scratch.before ? operation.scratch.before({op.schema(), arguments, {}}) : Kept();
    if (operation.shape_from_values) {
      results = by_values(call, operation, arguments);
    } else {
      const bool known_before = call.all_known();
      const std::optional<bool> truth = known_before ? std::nullopt : certain(operation, arguments);
      results = call.on_card_again(call.on_meta());
      if (operation.only_views) {
        // Whoever knows the memory knows the view.
      } else if (truth && elements_of(results) <= kMostElements) {
        for (const c10::IValue& one : results) {
          each_tensor(one, [&](const at::Tensor& tensor) {
            values_of(tensor).fill_(*truth);
            written(tensor, true);
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
    if (operation.scratch.after) {
      operation.scratch.after({op.schema(), arguments, results});
    }
  }
  torch::jit::drop(*stack, count);
  for (c10::IValue& one : results) {
    stack->push_back(std::move(one));
  }
}

// ---- copies and numbers ------------------------------------------------------------------------------------------

void stage(const at::Tensor& like) {
  // What a card cannot copy as it lies goes through a temporary.
  const at::Tensor staged = at::empty_like(like, like.options(), at::MemoryFormat::Contiguous);
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& from, bool non_blocking) {
  const WithoutPythonFunctions without;
  const at::Tensor source = from.sizes() == self.sizes() ? from : from.expand(self.sizes());
  if (self.numel() == 0) {
    return self;
  }
  const bool small = self.numel() <= kMostElements;
  for (const at::Tensor& one : {self, source}) {
    if (on_card(one) && is_elsewhere(one)) {
      ask(Asked::kElsewhere, described(one));
    }
  }
  if (!on_card(self)) {
    if (!source.is_contiguous()) {
      stage(source);
    }
    if (knows(source)) {
      self.copy_(values_of(source));
    } else if (at::isFloatingType(self.scalar_type()) || at::isComplexType(self.scalar_type())) {
      const double stand_in = ask(Asked::kNumber, described(source));
      if (small) {
        self.fill_(stand_in);
      }
    } else {
      ask(Asked::kDecision, described(source));
      self.zero_();
    }
    return self;
  }
  if (!on_card(source)) {
    if (!self.is_contiguous()) {
      stage(self);
    }
    if (small && source.device().is_cpu()) {
      values_of(self).copy_(source);
    }
    written(self, small && source.device().is_cpu());
    return self;
  }
  if (self.device() != source.device() &&
      !(self.is_contiguous() && source.is_contiguous() && self.scalar_type() == source.scalar_type())) {
    stage(source);
  }
  const bool is_known = small && knows(source);
  if (is_known) {
    values_of(self).copy_(values_of(source));
  }
  written(self, is_known);
  return self;
}

at::Scalar number_of(const at::Tensor& self) {
  if (knows(self)) {
    return at::_local_scalar_dense(values_of(self));
  }
  if (at::isFloatingType(self.scalar_type())) {
    return ask(Asked::kNumber, described(self));
  }
  const double stand_in = ask(Asked::kDecision, described(self));
  return self.scalar_type() == at::kBool ? at::Scalar(stand_in != 0) : at::Scalar(static_cast<int64_t>(stand_in));
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

struct Silence final : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

}  // namespace

void forget_values(void* address) {
  const std::lock_guard<std::mutex> lock(known_mutex);
  known.erase(address);
}

void kernels_on() {
  everywhere =
      std::make_unique<torch::Library>(torch::Library::IMPL, "_", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  everywhere->fallback(torch::CppFunction::makeFromBoxedFunction<&run>());
  torch::Library& aten = library_of("aten");
  aten.impl("copy_", TORCH_FN(copy_));
  aten.impl("_local_scalar_dense", TORCH_FN(number_of));
  aten.impl("_fused_sdp_choice", TORCH_FN(attention_choice));
  attention_on();
}

void kernels_off() {
  attention_off();
  libraries.clear();
  everywhere.reset();
}

}  // namespace memleak

extern "C" {

using namespace memleak;

// What Python answers where a value is asked for that nobody knows, and whether memory can hold values at all.
void memleak_card_values(Unknown answer, int possible) {
  unknown = answer;
  values_possible = possible != 0;
}

void memleak_card_workspace(int device, int64_t bytes) {
  if (workspace_sizes.size() <= static_cast<size_t>(device)) {
    workspace_sizes.resize(static_cast<size_t>(device) + 1);
  }
  workspace_sizes[static_cast<size_t>(device)] = bytes;
}

void memleak_card_release_workspaces(void) {
  decltype(workspaces) released;
  {
    const std::lock_guard<std::mutex> lock(workspaces_mutex);
    released.swap(workspaces);
  }
}

// An operation that torch or another library does in some other way goes to the kernel of all operations, too.
void memleak_card_take_over(const char* name_space, const char* name) {
  // That one kernel takes the place of another is the purpose.
  Silence silence;
  const c10::WarningUtils::WarningHandlerGuard silent(&silence);
  library_of(name_space).impl(name, torch::CppFunction::makeFromBoxedFunction<&run>());
}
}
