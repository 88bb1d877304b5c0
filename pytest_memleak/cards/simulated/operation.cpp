// Operations as the simulated card sees them: what they read and write, which of their results are views, and in which
// order a card's kernel takes the memory for them.

#include "operation.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>

namespace memleak {

bool one_of(const std::string& name, std::initializer_list<const char*> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

namespace {

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
  found.one_by_one = found.name.rfind("_foreach_", 0) == 0;
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
  } else if (found.name == "native_dropout") {
    found.order = {1, 0};
  } else if (found.name == "_scaled_dot_product_efficient_attention") {
    found.on_cpu_from = 2;  // the state of the random numbers
  }
  found.scratch = scratch_of(found.name);
  return found;
}

}  // namespace

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

}  // namespace memleak
