// What the attention kernels of a card come to. The CPU has none of them, and puts attention together from other
// operations; so does this, in single precision as the kernels reckon. With dropout the values stay unknown: which numbers
// a kernel drops is between its two passes.

#include "operation.h"
#include "values.h"

#include <ATen/ExpandUtils.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <utility>

namespace memleak {
namespace {

class Arguments {
 public:
  Arguments(const c10::FunctionSchema& schema, const Stack& values) : schema_(schema), values_(values) {}

  // Undefined if there is none.
  at::Tensor tensor(std::initializer_list<const char*> names) const {
    const c10::IValue* const value = find(names);
    return value != nullptr && value->isTensor() ? value->toTensor() : at::Tensor();
  }

  double number(const char* name, double otherwise) const {
    const c10::IValue* const value = find({name});
    return value == nullptr || value->isNone() ? otherwise : value->toDouble();
  }

  bool is(const char* name) const {
    const c10::IValue* const value = find({name});
    return value != nullptr && value->toBool();
  }

 private:
  const c10::IValue* find(std::initializer_list<const char*> names) const {
    for (const char* const name : names) {
      if (const auto index = schema_.argumentIndexWithName(name)) {
        return &values_.at(static_cast<size_t>(*index));
      }
    }
    return nullptr;
  }

  const c10::FunctionSchema& schema_;
  const Stack& values_;
};

struct Attention {
  at::Tensor query, key, value;  // of as many heads each
  at::Tensor sums;  // logarithms of what each row of the weights was divided by
  at::Tensor weights;
  double scale = 1.0;
};

Attention attention_of(const Arguments& arguments) {
  if (arguments.number("dropout_p", 0.0) > 0.0) {
    C10_THROW_ERROR(NotImplementedError, "dropout within attention");
  }
  const at::Tensor query = arguments.tensor({"query"});
  const int64_t times = query.size(1) / arguments.tensor({"key"}).size(1);
  const auto of_all_heads = [&](const char* name) {
    return arguments.tensor({name}).to(at::kFloat).repeat_interleave(times, 1);
  };
  Attention found{query.to(at::kFloat), of_all_heads("key"), of_all_heads("value"), {}, {}};
  found.scale = arguments.number("scale", 1.0 / std::sqrt(static_cast<double>(query.size(-1))));
  at::Tensor scores = at::matmul(found.query, found.key.transpose(-2, -1)) * found.scale;
  const double least = -std::numeric_limits<double>::infinity();
  if (arguments.is("is_causal")) {
    const at::Tensor seen = at::ones({scores.size(-2), scores.size(-1)}, at::kBool).tril();
    scores = scores.masked_fill(seen.logical_not(), least);
  }
  const at::Tensor bias = arguments.tensor({"attn_bias"});
  if (bias.defined()) {
    scores = bias.scalar_type() == at::kBool ? scores.masked_fill(bias.logical_not(), least) : scores + bias;
  }
  found.sums = at::logsumexp(scores, {-1});
  found.weights = (scores - found.sums.unsqueeze(-1)).exp().nan_to_num(0.0);  // of a row that sees nothing
  return found;
}

// A kernel pads it, or gives it one dimension more; what it says of rows that are not there is nobody's business.
at::Tensor in_shape_of(const at::Tensor& like, const at::Tensor& sums) {
  at::Tensor found = at::zeros(like.sizes(), at::kFloat);
  if (found.numel() > 0) {
    found.narrow(2, 0, sums.size(2)).copy_(found.dim() == 4 ? sums.unsqueeze(-1) : sums);
  }
  return found;
}

Stack forward(const Arguments& arguments, const Stack& results) {
  const Attention attention = attention_of(arguments);
  Stack found{at::matmul(attention.weights, attention.value)};
  for (size_t index = 1; index < results.size(); ++index) {
    const c10::IValue& one = results[index];
    if (!one.isTensor() || !on_card(one.toTensor())) {
      found.push_back(one);
    } else if (index == 1) {
      found.push_back(in_shape_of(one.toTensor(), attention.sums));
    } else {
      found.push_back(at::zeros(one.toTensor().sizes(), one.toTensor().scalar_type()));
    }
  }
  return found;
}

Stack backward(const Arguments& arguments) {
  const Attention attention = attention_of(arguments);
  const at::Tensor gradient = arguments.tensor({"grad_out", "grad_out_"}).to(at::kFloat);
  const at::Tensor& weights = attention.weights;
  const at::Tensor of_weights = at::matmul(gradient, attention.value.transpose(-2, -1));
  const at::Tensor of_scores = weights * (of_weights - (of_weights * weights).sum(-1, true));
  const auto of_own_heads = [&](const at::Tensor& all) {
    const int64_t heads = arguments.tensor({"key"}).size(1);
    return all.reshape({all.size(0), heads, -1, all.size(2), all.size(3)}).sum(2);
  };
  Stack found{
      at::matmul(of_scores, attention.key) * attention.scale,
      of_own_heads(at::matmul(of_scores.transpose(-2, -1), attention.query) * attention.scale),
      of_own_heads(at::matmul(weights.transpose(-2, -1), gradient))};
  const at::Tensor bias = arguments.tensor({"attn_bias"});
  found.push_back(bias.defined() ? at::sum_to(of_scores, bias.sizes()) : at::Tensor());
  return found;
}

Stack forward_by_hand(const c10::FunctionSchema& schema, const Stack& arguments, const Stack& results) {
  return forward({schema, arguments}, results);
}

Stack backward_by_hand(const c10::FunctionSchema& schema, const Stack& arguments, const Stack&) {
  return backward({schema, arguments});
}

}  // namespace

ByHand attention_by_hand(const std::string& name) {
  if (one_of(
          name,
          {"_scaled_dot_product_cudnn_attention",
           "_scaled_dot_product_flash_attention",
           "_scaled_dot_product_efficient_attention"})) {
    return &forward_by_hand;
  }
  if (one_of(
          name,
          {"_scaled_dot_product_cudnn_attention_backward",
           "_scaled_dot_product_flash_attention_backward",
           "_scaled_dot_product_efficient_attention_backward"})) {
    return &backward_by_hand;
  }
  return nullptr;
}

}  // namespace memleak
