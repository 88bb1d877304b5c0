// What kernels of a card may take for themselves beyond what is simulated: how much at most.
//
// These are operations whose kernels are chosen by trying, or whose libraries ask for a workspace of a size that nobody
// has written down (cuDNN, cuSOLVER, cuFFT, CUB for long rows). The bounds are above what each took on an H200.

#include "margins.h"

#include "values.h"

#include <string>
#include <unordered_map>
#include <unordered_set>

namespace memleak {
namespace margins {

constexpr int64_t kMiB = int64_t{1} << 20;
// What cuBLASLt and cuSOLVER may ask for at once.
constexpr int64_t kLibrary = 36 * kMiB;

bool has_long_rows(const Running& running) {
  constexpr int64_t kShort = 4096;
  const at::Tensor& input = running.tensor(0);
  const c10::IValue dim = running.argument("dim");
  return input.dim() > 0 && (!dim.isInt() || input.size(dim.toInt()) > kShort);
}

bool has_odd_heads(const Running& running) {
  return running.tensor(1).size(-1) % 8 != 0;
}

const std::unordered_map<std::string, Margin>& all() {
  static const auto* const found = new std::unordered_map<std::string, Margin>{
      {"sort", {2.2, 0, has_long_rows}},
      {"median", {9, 0, has_long_rows}},
      {"nanmedian", {9, 0, has_long_rows}},
      {"multinomial", {3.2, 0}},
      {"_scaled_dot_product_flash_attention_backward", {0.2, 0, has_odd_heads}},
      {"_scaled_dot_product_efficient_attention_backward", {0.2, 0, has_odd_heads}},
      {"convolution", {1.3, 0}},
      {"convolution_backward", {1.3, 0}},
      {"_fft_r2c", {1, 0}},
      {"_fft_c2r", {1, 0}},
      {"col2im", {1, 0}},
      {"_embedding_bag_backward", {1, 0}},
      {"_embedding_bag_dense_backward", {1, 0}},
      {"_transformer_encoder_layer_fwd", {4, 0}},
      {"_native_multi_head_attention", {4, 0}},
      {"_scaled_mm", {0, kLibrary}},
      {"_int_mm", {0, kLibrary}},
      {"_linalg_svd", {1.5, kLibrary}},
      {"_linalg_eigh", {2.5, kLibrary}},
      {"linalg_eig", {4, kLibrary}},
      {"linalg_qr", {1, kLibrary}},
      {"geqrf", {1, kLibrary}},
      {"linalg_lstsq", {2, kLibrary}},
      {"linalg_inv_ex", {1, kLibrary}},
      {"_linalg_solve_ex", {1, kLibrary}},
      {"linalg_cholesky_ex", {1, kLibrary}},
  };
  return *found;
}

// Each tensor once: results may be among the arguments.
int64_t bytes_of(const Running& running) {
  std::unordered_set<const c10::TensorImpl*> seen;
  int64_t bytes = 0;
  for (const at::ArrayRef<c10::IValue> values : {running.arguments, running.results}) {
    for (const c10::IValue& value : values) {
      if (value.isTensor() && value.toTensor().defined() && seen.insert(value.toTensor().unsafeGetTensorImpl()).second) {
        bytes += value.toTensor().numel() * static_cast<int64_t>(value.toTensor().itemsize());
      }
    }
  }
  return bytes;
}

}  // namespace margins

Margin margin_of(const std::string& name) {
  const auto found = margins::all().find(name);
  return found == margins::all().end() ? Margin{} : found->second;
}

void tell_margin(const Margin& margin, const std::string& name, const Running& running, c10::Device device) {
  if (margin.concerns != nullptr && !margin.concerns(running)) {
    return;
  }
  const auto share = static_cast<int64_t>(margin.share * static_cast<double>(margins::bytes_of(running)));
  const int64_t bytes = share + margin.bytes;
  ask(Asked::kMargin, name + " " + std::to_string(bytes) + " " + std::to_string(device.index()));
}

}  // namespace memleak
