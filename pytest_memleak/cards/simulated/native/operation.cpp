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

// The arguments by whose values the results are as large as they are, or are true.
std::vector<size_t> sized_by(const std::string& name, const std::string& overload) {
  if (name == "equal") {
    return {0, 1};
  }
  if (name == "masked_select") {
    return {1};
  }
  const bool by_first = one_of(
      name,
      {"nonzero", "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "bincount"});
  return by_first || (name == "repeat_interleave" && overload == "Tensor") ? std::vector<size_t>{0}
                                                                           : std::vector<size_t>{};
}

// And those that torch goes by on its way there, on the CPU.
std::vector<size_t> decided_on_the_way(const std::string& name, const std::string& overload) {
  if (name == "_pack_padded_sequence" || (name == "tensor_split" && overload == "tensor_indices_or_sections")) {
    return {1};
  }
  if (one_of(name, {"allclose", "_choose_qparams_per_tensor"})) {
    return name == "allclose" ? std::vector<size_t>{0, 1} : std::vector<size_t>{0};
  }
  return name == "ctc_loss" && overload == "Tensor" ? std::vector<size_t>{2, 3} : std::vector<size_t>{};
}

Operation read_schema(const c10::OperatorHandle& op) {
  const c10::FunctionSchema& schema = op.schema();
  Operation found;
  found.name = schema.name().substr(schema.name().find("::") + 2);
  const bool writes_only = one_of(
      found.name,
      {"copy_", "_foreach_copy_", "fill_", "zero_", "_foreach_zero_", "normal_", "uniform_", "random_", "bernoulli_",
       "exponential_", "log_normal_", "geometric_", "cauchy_"});
  const bool fills_others = one_of(found.name, {"_cummax_helper", "_cummin_helper"});
  // torch's schemas of these do not say that they write.
  const bool keeps_running = one_of(found.name, {"native_batch_norm", "cudnn_batch_norm"});
  std::map<c10::Symbol, int> base;
  size_t handed_in = 0;
  for (size_t index = 0; index < schema.arguments().size(); ++index) {
    const c10::Argument& argument = schema.arguments()[index];
    const c10::AliasInfo* const alias = argument.alias_info();
    const bool is_written = (alias != nullptr && alias->isWrite()) ||
        (keeps_running && (argument.name() == "running_mean" || argument.name() == "running_var"));
    if (keeps_running && argument.name() == "training") {
      found.writes_if = index;
    }
    found.is_written.push_back(is_written);
    handed_in += argument.is_out() ? 1 : 0;
    found.is_read.push_back(!is_written || (!argument.is_out() && !(index == 0 && writes_only) && !fills_others));
    if (argument.name() == "beta" && (found.name.rfind("add", 0) == 0 || found.name.rfind("baddbmm", 0) == 0)) {
      found.factor_of_self = index;
    }
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
  found.hands_back = handed_in > 0 && handed_in == schema.returns().size();
  found.one_by_one = found.name.rfind("_foreach_", 0) == 0;
  found.only_views = !found.view_of.empty() &&
      std::all_of(found.view_of.begin(), found.view_of.end(), [](int base) { return base >= 0; });
  found.random = op.hasTag(at::Tag::nondeterministic_seeded);
  found.decided_by = sized_by(found.name, schema.overload_name());
  found.shape_from_values = !found.decided_by.empty();
  if (!found.shape_from_values) {
    found.decided_by = decided_on_the_way(found.name, schema.overload_name());
  }
  found.composite = op.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd) &&
      !op.hasKernelForDispatchKey(c10::DispatchKey::CPU);
  found.makes_own_values = one_of(
      found.name,
      {"empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like", "new_zeros",
       "new_ones", "new_full", "new_empty_strided"});
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
  if (found.name == "_amp_foreach_non_finite_check_and_unscale_") {
    found.left_alone = 1;
  }
  found.scratch = scratch_of(found.name);
  found.margin = margin_of(found.name);
  found.refusals = refusals_of(found.name);
  found.by_hand = attention_by_hand(found.name);
  if (found.by_hand == nullptr) {
    found.by_hand = normalization_by_hand(found.name);
  }
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
