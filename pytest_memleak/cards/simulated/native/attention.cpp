// Which of its attention kernels torch takes on a card.
//
// scaled_dot_product_attention itself is torch's own: masks, padding and repeated heads are prepared as on a card. It asks
// for its choice CUDA code that is not there; this is asked instead. The conditions that depend on tensors only come with
// torch's headers; those that depend on the card, and the order, are here.

#include "card.h"

#include <ATen/Context.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>

#include <optional>
#include <vector>

namespace memleak {
namespace attention {

using Params = sdp::sdp_params;

bool half(const Params& params, const Facts& card) {
  const auto type = params.query.scalar_type();
  const bool known = type == at::kHalf || (type == at::kBFloat16 && card.major >= 8);
  return known && params.key.scalar_type() == type && params.value.scalar_type() == type;
}

bool with_cudnn(const Params& params, const Facts& card) {
  const auto& context = at::globalContext();
  if (!context.userEnabledCuDNNSDP() || card.major < 8 || sdp::has_for_nested_inputs(params) ||
      (context.deterministicAlgorithms() && !context.deterministicAlgorithmsWarnOnly()) ||
      !sdp::check_tensor_shapes(params, false) || !half(params, card) || !sdp::check_attn_mask_shape(params, false) ||
      !sdp::check_nonzero_sequence_lengths_dense(params, false) ||
      !sdp::check_last_dim_stride_equals_1_dense<true>(params, false) || !sdp::check_batch_size_and_num_heads_dense<true>(params, false)) {
    return false;
  }
  const int64_t width = params.query.size(3);
  const int64_t value_width = params.value.size(3);
  const bool deepseek = width == 192 && value_width == 128;
  const int64_t widest = card.major == 9 && card.minor == 0 ? 256 : (card.major == 10 && deepseek ? 192 : 128);
  return width <= widest && value_width <= widest && width % 8 == 0 && value_width % 8 == 0 &&
      params.key.size(2) != 1 && !(params.dropout != 0.0 && params.query.size(2) == 1);
}

bool with_flash(const Params& params, const Facts& card) {
  if (card.major < 8 || !sdp::check_runtime_disabled_flash(params, false) ||
      !sdp::check_tensor_shapes(params, false) || !sdp::check_for_attn_mask(params, false) || !half(params, card)) {
    return false;
  }
  const int64_t width = params.query.size(-1);
  if (width > 256 || params.key.size(-1) != width || params.value.size(-1) != width) {
    return false;
  }
  // Their shared memory is too small for the backward pass of wide heads.
  const bool small_shared_memory = (card.major == 8 && card.minor >= 6) || card.major == 12;
  if (small_shared_memory && sdp::input_requires_grad(params) &&
      ((width > 192 && width <= 224) || (width > 224 && params.dropout > 0.0))) {
    return false;
  }
  return !(params.is_causal && !sdp::has_for_nested_inputs(params) && params.query.size(-2) != params.key.size(-2)) &&
      sdp::check_batch_size_and_num_heads_dense<true>(params, false) &&
      sdp::check_nonzero_sequence_lengths_dense(params, false) &&
      sdp::check_last_dim_stride_equals_1_dense<true>(params, false);
}

bool with_efficient(const Params& params, const Facts& card) {
  if (!sdp::check_runtime_disabled_mem_efficient(params, false) || !sdp::check_tensor_shapes(params, false)) {
    return false;
  }
  const bool single = params.query.scalar_type() == at::kFloat;
  if (!single && !half(params, card)) {
    return false;
  }
  const int64_t bits = single ? 32 : 16;
  const bool tensor_cores = card.major >= 8 || (card.major == 7 && !single);
  const int64_t aligned = tensor_cores ? 128 / bits : 1;
  const int64_t width = params.query.size(-1);
  return width == params.key.size(-1) && width > 0 && width % aligned == 0 && params.value.size(-1) > 0 &&
      params.value.size(-1) % aligned == 0 && sdp::check_nonzero_sequence_lengths_dense(params, false) &&
      sdp::check_last_dim_stride_equals_1_dense<false>(params, false) &&
      sdp::check_batch_size_and_num_heads_dense<false>(params, false);
}

std::optional<std::vector<int64_t>> order_before;

void order_on_card(const Facts& card) {
  if (order_before) {
    return;
  }
  auto& context = at::globalContext();
  order_before.emplace();
  for (const at::SDPBackend one : context.sDPPriorityOrder()) {
    order_before->push_back(static_cast<int64_t>(one));
  }
  if (card.prefers_cudnn) {
    std::vector<int64_t> order;
    for (const at::SDPBackend one :
         {at::SDPBackend::cudnn_attention,
          at::SDPBackend::flash_attention,
          at::SDPBackend::efficient_attention,
          at::SDPBackend::math}) {
      order.push_back(static_cast<int64_t>(one));
    }
    context.setSDPPriorityOrder(order);
  }
}

}  // namespace attention

int64_t attention_choice(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value,
    const std::optional<at::Tensor>& mask,
    double dropout,
    bool causal,
    std::optional<double>,
    bool grouped) {
  const Facts& card = facts_of(query.device().index());
  const attention::Params params{query, key, value, mask, dropout, causal, grouped};
  attention::order_on_card(card);
  auto& context = at::globalContext();
  for (const at::SDPBackend one : context.sDPPriorityOrder()) {
    if ((one == at::SDPBackend::cudnn_attention && attention::with_cudnn(params, card)) ||
        (one == at::SDPBackend::flash_attention && attention::with_flash(params, card)) ||
        (one == at::SDPBackend::efficient_attention && attention::with_efficient(params, card)) ||
        (one == at::SDPBackend::math && context.userEnabledMathSDP())) {
      return static_cast<int64_t>(one);
    }
  }
  TORCH_CHECK(false, "No available kernel. Aborting execution.");
}

void attention_on() {
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&attention_choice);
}

void attention_off() {
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(nullptr);
  if (attention::order_before) {
    at::globalContext().setSDPPriorityOrder(*attention::order_before);
    attention::order_before.reset();
  }
}

}  // namespace memleak
