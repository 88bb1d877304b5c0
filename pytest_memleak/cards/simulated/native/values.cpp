// Values on the simulated card: which storages have them, and what becomes of a question that they cannot answer.

#include "values.h"

#include "generators.h"
#include "marks.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/from_blob.h>

#include <unordered_map>
#include <unordered_set>

namespace memleak {
namespace values {

using Unknown = void (*)(int asked, const char* what);

Unknown unknown = nullptr;
double stand_in = 0;
bool possible = false;
std::mutex known_mutex;
std::unordered_set<const void*> known;
std::unordered_map<const void*, bool> all_alike;

std::mutex& randomness_mutex() {
  static std::mutex* const one = new std::mutex();
  return *one;
}

}  // namespace values

std::string described(const at::Tensor& tensor) {
  std::string text = c10::toString(tensor.scalar_type());
  text += " [";
  for (size_t index = 0; index < static_cast<size_t>(tensor.dim()); ++index) {
    text += (index ? ", " : "") + std::to_string(tensor.size(static_cast<int64_t>(index)));
  }
  return text + "]";
}

void ask(Asked asked, const std::string& what) {
  const InPython in_python;
  values::unknown(static_cast<int>(asked), what.c_str());
}

at::Scalar placeholder(at::ScalarType type) {
  if (at::isComplexType(type)) {
    return c10::complex<double>(values::stand_in, 0);
  }
  return at::isFloatingType(type) ? at::Scalar(values::stand_in) : at::Scalar(0);
}

bool on_card(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kCard;
}

bool knows(const at::Tensor& tensor) {
  if (!on_card(tensor)) {
    return !marked(tensor);
  }
  if (tensor.unsafeGetTensorImpl()->is_python_dispatch() || !tensor.has_storage()) {
    return true;  // another library's, with tensors inside that are asked for themselves
  }
  const c10::Storage& storage = tensor.storage();
  if (storage.nbytes() == 0) {
    return true;
  }
  const std::lock_guard<std::mutex> lock(values::known_mutex);
  return values::known.count(storage.data()) > 0;
}

void written(const at::Tensor& tensor, bool is_known) {
  if (!on_card(tensor)) {
    return;
  }
  const c10::Storage& storage = tensor.storage();
  const std::lock_guard<std::mutex> lock(values::known_mutex);
  values::all_alike.erase(storage.data());
  if (!is_known) {
    values::known.erase(storage.data());
  } else if (
      values::possible && tensor.is_non_overlapping_and_dense() &&
      (static_cast<size_t>(tensor.numel()) * tensor.itemsize() == storage.nbytes() || storage.use_count() == 1)) {
    // All of it was written, or all that anybody sees of it.
    values::known.insert(storage.data());
  }
}

void written_alike(const at::Tensor& tensor, bool truth) {
  const c10::Storage& storage = tensor.storage();
  const bool whole = static_cast<size_t>(tensor.numel()) * tensor.itemsize() == storage.nbytes();
  written(tensor, false);
  if (whole && tensor.scalar_type() == at::kBool) {
    const std::lock_guard<std::mutex> lock(values::known_mutex);
    values::all_alike[storage.data()] = truth;
  }
}

std::optional<bool> alike(const at::Tensor& tensor) {
  if (!on_card(tensor) || tensor.scalar_type() != at::kBool || tensor.numel() == 0) {
    return std::nullopt;
  }
  const std::lock_guard<std::mutex> lock(values::known_mutex);
  const auto found = values::all_alike.find(tensor.storage().data());
  return found == values::all_alike.end() ? std::nullopt : std::optional<bool>(found->second);
}

at::Tensor values_of(const at::Tensor& tensor) {
  at::Tensor values = at::from_blob(
      tensor.unsafeGetTensorImpl()->mutable_data(),
      tensor.sizes(),
      tensor.strides(),
      tensor.options().device(at::kCPU).requires_grad(false));
  if (tensor.is_conj() || tensor.is_neg()) {
    values._set_conj(tensor.is_conj());
    values._set_neg(tensor.is_neg());
  }
  return values;
}

OwnRandomness::OwnRandomness(const at::Generator& of)
    : lock_(values::randomness_mutex()), generator_(at::detail::getDefaultCPUGenerator()) {
  theirs_ = generator_.get_state();
  generator_.set_current_seed(next_seed(of));
}

OwnRandomness::~OwnRandomness() {
  generator_.set_state(theirs_);
}

bool can_hold_values() {
  return values::possible;
}

bool knows_values(const void* address) {
  const std::lock_guard<std::mutex> lock(values::known_mutex);
  return values::known.count(address) > 0;
}

void learn_values(const void* address) {
  const std::lock_guard<std::mutex> lock(values::known_mutex);
  if (values::possible) {
    values::known.insert(address);
  }
}

void forget_values(const void* address) {
  const std::lock_guard<std::mutex> lock(values::known_mutex);
  values::known.erase(address);
  values::all_alike.erase(address);
}

}  // namespace memleak

extern "C" {

using namespace memleak;

// What Python answers where a value is asked for that nobody knows, what stands in for a floating-point number, and whether
// memory can hold values at all.
void memleak_card_values(values::Unknown answer, double stand_in, int possible) {
  values::unknown = answer;
  values::stand_in = stand_in;
  values::possible = possible != 0;
}
}
