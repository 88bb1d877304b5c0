// What a card refuses to do: the program gets an error, and has to get it here, too.
//
// torch's shape functions raise what is wrong with shapes, and some of what is wrong with types. The rest is said by the
// kernels themselves, which do not run here; in their words, as an H200 had them. And a kernel that finds an index out of
// its range while it runs stops the card. Whether it does is known where the indices are, whatever else is not.

#include "refusals.h"

#include "values.h"

#include <ATen/ops/aminmax.h>

#include <torch/csrc/api/include/torch/version.h>

#include <algorithm>
#include <initializer_list>
#include <tuple>
#include <unordered_map>

namespace memleak {
namespace refusals {

constexpr int kDeviceAssert = 710;

bool is_tensor(const c10::IValue& value) {
  return value.isTensor() && value.toTensor().defined();
}

bool has_elements(const Running& running) {
  for (const c10::IValue& one : running.arguments) {
    if (is_tensor(one) && one.toTensor().numel() == 0) {
      return false;
    }
  }
  return true;
}

[[noreturn]] void not_implemented(const std::string& kernel, at::ScalarType type) {
  C10_THROW_ERROR(NotImplementedError, "\"" + kernel + "\" not implemented for '" + c10::toString(type) + "'");
}

void no_integers(const Running& running, size_t index, const char* kernel) {
  const at::ScalarType type = running.tensor(index).scalar_type();
  if (at::isIntegralType(type, /*includeBool=*/true) && has_elements(running)) {
    not_implemented(kernel, type);
  }
}

// ---- products ----------------------------------------------------------------------------------------------------

void product(const Running& running) {
  const at::Tensor &one = running.tensor(0), &other = running.tensor(1);
  TORCH_CHECK(
      one.dtype() == other.dtype(),
      "expected mat1 and mat2 to have the same dtype, but got: ",
      one.dtype().name(),
      " != ",
      other.dtype().name());
  no_integers(running, 0, "addmm_cuda");
}

void product_and_sum(const Running& running) {
  const at::Tensor &self = running.tensor(0), &one = running.tensor(1), &other = running.tensor(2);
  TORCH_CHECK(
      one.scalar_type() == other.scalar_type(),
      "mat1 and mat2 must have the same dtype, but got ",
      c10::toString(one.scalar_type()),
      " and ",
      c10::toString(other.scalar_type()));
  const bool wider = running.argument("out_dtype").isInt();
  TORCH_CHECK(
      wider || self.scalar_type() == other.scalar_type(),
      "self and mat2 must have the same dtype, but got ",
      c10::toString(self.scalar_type()),
      " and ",
      c10::toString(other.scalar_type()));
  no_integers(running, 1, "addmm_cuda");
}

void several_products(const Running& running) {
  const at::Tensor &one = running.tensor(0), &other = running.tensor(1);
  TORCH_CHECK(
      one.scalar_type() == other.scalar_type(),
      "expected scalar type ",
      c10::toString(one.scalar_type()),
      " but found ",
      c10::toString(other.scalar_type()));
  no_integers(running, 0, "baddbmm_cuda");
}

void several_products_and_sum(const Running& running) {
  no_integers(running, 1, "baddbmm_cuda");
}

void product_with_vector(const Running& running) {
  const bool sums = running.arguments.size() > 2;
  const at::Tensor &matrix = running.tensor(sums ? 1 : 0), &vector = running.tensor(sums ? 2 : 1);
  TORCH_CHECK(
      matrix.scalar_type() == vector.scalar_type(),
      "expected scalar type ",
      c10::toString(matrix.scalar_type()),
      " but found ",
      c10::toString(vector.scalar_type()));
  no_integers(running, sums ? 1 : 0, "addmv_impl_cuda");
}

void product_of_vectors(const Running& running) {
  no_integers(running, 0, "dot");
}

void convolution(const Running& running) {
  const at::Tensor &input = running.tensor(0), &weight = running.tensor(1);
  const auto named = [](const at::Tensor& tensor) {
    const char* const kind = tensor.device().is_cpu() ? "torch." : "torch.cuda.";
    return kind + std::string(c10::toString(tensor.scalar_type())) + "Tensor";
  };
  TORCH_CHECK(
      input.scalar_type() == weight.scalar_type(),
      "Input type (",
      named(input),
      ") and weight type (",
      named(weight),
      ") should be the same");
  TORCH_CHECK(
      !at::isIntegralType(input.scalar_type(), /*includeBool=*/true),
      "getCudnnDataTypeFromScalarType() not supported for ",
      c10::toString(input.scalar_type()));
}

// cuSOLVER and MAGMA have none of these for halves.
void no_halves(const Running& running) {
  const at::ScalarType type = running.tensor(0).scalar_type();
  if (type == at::kHalf || type == at::kBFloat16) {
    std::string name = running.schema.name();
    name = name.substr(name.find("::") + 2);
    not_implemented(name.substr(name.find_first_not_of('_')) + "_cuda", type);
  }
}

// ---- norms and losses --------------------------------------------------------------------------------------------

// The kernel reads weight and bias as what its input is.
void norm(const Running& running) {
  const at::ScalarType type = running.tensor(0).scalar_type();
  for (const char* const name : {"weight", "bias"}) {
    const c10::IValue one = running.argument(name);
    TORCH_CHECK(
        !is_tensor(one) || one.toTensor().scalar_type() == type,
        "expected scalar type ",
        c10::toString(type),
        " but found ",
        c10::toString(one.toTensor().scalar_type()));
  }
}

void loss_of_one_type(const Running& running) {
  const at::ScalarType type = running.tensor(0).scalar_type(), other = running.tensor(1).scalar_type();
  TORCH_CHECK(
      type == other, "Found dtype ", c10::toString(other), " but expected ", c10::toString(type));
}

// ---- masks and indices -------------------------------------------------------------------------------------------

void mask(const Running& running) {
  const at::ScalarType type = running.tensor(1).scalar_type();
  TORCH_CHECK(
      type == at::kBool, "masked_fill only supports boolean masks, but got dtype ", c10::toString(type));
}

void where_indices_are(const Running& running) {
  const at::Tensor& self = running.tensor(0);
  if (self.device().is_cpu()) {
    for (const c10::IValue& one : running.arguments[1].toListRef()) {
      TORCH_CHECK(
          !is_tensor(one) || one.toTensor().device().is_cpu(),
          "indices should be either on cpu or on the same device as the indexed tensor (",
          self.device(),
          ")");
    }
  }
}

void index_put(const Running& running) {
  where_indices_are(running);
  const at::ScalarType to = running.tensor(0).scalar_type(), from = running.tensor(2).scalar_type();
  TORCH_CHECK(
      to == from,
      "Index put requires the source and destination dtypes match, got ",
      c10::toString(to),
      " for the destination and ",
      c10::toString(from),
      " for the source.");
}

// The smallest and the largest of indices, if they are known.
bool bounds_of(const at::Tensor& indices, int64_t& least, int64_t& most) {
  if (indices.numel() == 0 || indices.numel() > kMostElements || !knows(indices) ||
      !at::isIntegralType(indices.scalar_type(), /*includeBool=*/false) ||
      indices.unsafeGetTensorImpl()->is_python_dispatch() || !indices.has_storage()) {
    return false;
  }
  if (!on_card(indices) && !indices.device().is_cpu()) {
    return false;
  }
  const auto found = at::aminmax(on_card(indices) ? values_of(indices) : indices);
  least = std::get<0>(found).item<int64_t>();
  most = std::get<1>(found).item<int64_t>();
  return true;
}

void within(const at::Tensor& indices, int64_t from, int64_t size, const std::string& of) {
  int64_t least = 0, most = 0;
  if (bounds_of(indices, least, most) && (least < from || most >= size)) {
    assert_on_card(
        "index " + std::to_string(least < from ? least : most) + " is out of bounds for " + of + " with size " +
        std::to_string(size));
  }
}

void within_dimension(const at::Tensor& self, int64_t dim, const at::Tensor& indices) {
  const int64_t at = dim < 0 ? dim + self.dim() : dim;
  within(indices, 0, self.dim() == 0 ? 1 : self.size(at), "dimension " + std::to_string(at));
}

// gather, scatter, and whatever else has an index for one dimension.
void index_of_dimension(const Running& running) {
  if (running.arguments[1].isInt() && is_tensor(running.arguments[2])) {
    within_dimension(running.tensor(0), running.arguments[1].toInt(), running.tensor(2));
  }
}

void look_up_rows(const Running& running) {
  within_dimension(running.tensor(0), 0, running.tensor(1));
}

// One that is negative counts from the end.
void indices(const Running& running) {
  const at::Tensor& self = running.tensor(0);
  int64_t dim = 0;
  for (const c10::IValue& one : running.arguments[1].toListRef()) {
    if (dim >= self.dim()) {
      return;
    }
    if (is_tensor(one)) {
      const int64_t size = self.size(dim);
      within(one.toTensor(), -size, size, "dimension " + std::to_string(dim));
    }
    ++dim;
  }
}

void labels(const Running& running) {
  const at::Tensor &self = running.tensor(0), &target = running.tensor(1);
  const int64_t classes = self.size(self.dim() == 1 ? 0 : 1);
  const int64_t ignored = running.argument("ignore_index").toInt();
  int64_t least = 0, most = 0;
  if (!bounds_of(target, least, most) || (least >= 0 && most < classes)) {
    return;
  }
  const at::Tensor values = on_card(target) ? values_of(target) : target;
  const at::Tensor wrong = values.ne(ignored).logical_and(values.lt(0).logical_or(values.ge(classes)));
  if (wrong.any().item<bool>()) {
    const auto first = values.masked_select(wrong)[0].item<int64_t>();
    assert_on_card("target " + std::to_string(first) + " is out of bounds for " + std::to_string(classes) + " classes");
  }
}

const std::unordered_map<std::string, Refusals>& rules() {
  static const auto* const all = new std::unordered_map<std::string, Refusals>{
      {"mm", {product, nullptr}},
      {"addmm", {product_and_sum, nullptr}},
      {"addmm_", {product_and_sum, nullptr}},
      {"_addmm_activation", {product_and_sum, nullptr}},
      {"bmm", {several_products, nullptr}},
      {"baddbmm", {several_products_and_sum, nullptr}},
      {"baddbmm_", {several_products_and_sum, nullptr}},
      {"mv", {product_with_vector, nullptr}},
      {"addmv", {product_with_vector, nullptr}},
      {"addmv_", {product_with_vector, nullptr}},
      {"dot", {product_of_vectors, nullptr}},
      {"vdot", {product_of_vectors, nullptr}},
      {"convolution", {convolution, nullptr}},
      {"_linalg_svd", {no_halves, nullptr}},
      {"_linalg_eigh", {no_halves, nullptr}},
      {"_linalg_det", {no_halves, nullptr}},
      {"_linalg_slogdet", {no_halves, nullptr}},
      {"_linalg_solve_ex", {no_halves, nullptr}},
      {"linalg_cholesky_ex", {no_halves, nullptr}},
      {"cholesky", {no_halves, nullptr}},
      {"linalg_inv_ex", {no_halves, nullptr}},
      {"linalg_lu_factor_ex", {no_halves, nullptr}},
      {"linalg_qr", {no_halves, nullptr}},
      {"linalg_eig", {no_halves, nullptr}},
      {"native_layer_norm", {norm, nullptr}},
      {"native_group_norm", {norm, nullptr}},
      {"binary_cross_entropy", {loss_of_one_type, nullptr}},
      {"masked_fill", {mask, nullptr}},
      {"masked_fill_", {mask, nullptr}},
      {"index", {where_indices_are, indices}},
      {"_unsafe_index", {where_indices_are, indices}},
      {"index_put", {index_put, indices}},
      {"index_put_", {index_put, indices}},
      {"_index_put_impl_", {index_put, indices}},
      {"embedding", {nullptr, look_up_rows}},
      {"index_select", {nullptr, index_of_dimension}},
      {"index_add", {nullptr, index_of_dimension}},
      {"index_add_", {nullptr, index_of_dimension}},
      {"index_copy", {nullptr, index_of_dimension}},
      {"index_copy_", {nullptr, index_of_dimension}},
      {"gather", {nullptr, index_of_dimension}},
      {"scatter", {nullptr, index_of_dimension}},
      {"scatter_", {nullptr, index_of_dimension}},
      {"scatter_add", {nullptr, index_of_dimension}},
      {"scatter_add_", {nullptr, index_of_dimension}},
      {"scatter_reduce", {nullptr, index_of_dimension}},
      {"scatter_reduce_", {nullptr, index_of_dimension}},
      {"nll_loss_forward", {nullptr, labels}},
      {"nll_loss2d_forward", {nullptr, labels}},
  };
  return *all;
}

bool says(const c10::Error& error, std::initializer_list<const char*> words) {
  const std::string said = error.what_without_backtrace();
  return std::any_of(
      words.begin(), words.end(), [&](const char* word) { return said.find(word) != std::string::npos; });
}

// What is said of the CPU alone, and of types that its kernels do without and those of a card do not.
bool is_about_cpu(const c10::Error& error) {
  return dynamic_cast<const c10::NotImplementedError*>(&error) != nullptr ||
      says(error,
           {"not implemented", "not supported", "nsupported", "CPU", "cpu", "MKL", "mkl", "LAPACK", "Half", "BFloat16",
            "Float8", "INTERNAL ASSERT"});
}

// What a kernel of the card finds only while it runs.
bool is_about_values(const c10::Error& error) {
  return dynamic_cast<const c10::IndexError*>(&error) != nullptr ||
      says(error, {"out of bounds", "out of range", "between 0 and 1", "probability"});
}

}  // namespace refusals

Refusals refusals_of(const std::string& name) {
  const auto found = refusals::rules().find(name);
  return found == refusals::rules().end() ? Refusals{} : found->second;
}

void assert_on_card(const std::string& why) {
  const std::string words = "CUDA error: device-side assert triggered: " + why;
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 9)
  throw c10::AcceleratorError({__func__, __FILE__, __LINE__}, refusals::kDeviceAssert, words);
#else
  C10_THROW_ERROR(Error, words);
#endif
}

void raise_as_card(const c10::Error& error) {
  if (refusals::is_about_cpu(error)) {
    return;
  }
  if (refusals::is_about_values(error)) {
    assert_on_card(error.what_without_backtrace());
  }
  throw;
}

}  // namespace memleak
