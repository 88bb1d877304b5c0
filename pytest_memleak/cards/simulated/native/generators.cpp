// Generators of a card: a seed, and how many numbers were taken since. Their numbers are not those of a real card, but
// the same ones for the same state; where a tensor is too large to be computed, none.

#include "generators.h"

#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/empty.h>
#include <c10/core/GeneratorImpl.h>

#include <array>
#include <cstring>
#include <vector>

namespace memleak {
namespace generators {

// What one operation takes at least.
constexpr uint64_t kStep = 4;

struct OfCard final : c10::GeneratorImpl {
  explicit OfCard(c10::DeviceIndex device)
      : c10::GeneratorImpl({kCard, device}, c10::DispatchKeySet(c10::DispatchKey::CUDA)) {}

  void set_current_seed(uint64_t seed) override {
    state = {seed, 0};
  }
  void set_offset(uint64_t offset) override {
    state[1] = offset;
  }
  uint64_t get_offset() const override {
    return state[1];
  }
  uint64_t current_seed() const override {
    return state[0];
  }
  uint64_t seed() override {
    set_current_seed(c10::detail::getNonDeterministicRandom(true));
    return state[0];
  }
  // As a card's: the seed, and the offset unless it is zero.
  void set_state(const c10::TensorImpl& from) override {
    const auto bytes = static_cast<size_t>(from.numel());
    TORCH_CHECK(
        from.is_cpu() && from.dtype() == caffe2::TypeMeta::Make<uint8_t>() && from.is_contiguous(),
        "RNG state must be a torch.ByteTensor");
    TORCH_CHECK(bytes == sizeof(state) || bytes == sizeof(uint64_t), "RNG state is wrong size");
    state = {};
    std::memcpy(state.data(), from.data(), bytes);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    const at::Tensor found = at::empty({static_cast<int64_t>(sizeof(state))}, at::kByte);
    std::memcpy(found.mutable_data_ptr(), state.data(), sizeof(state));
    return found.getIntrusivePtr();
  }
  OfCard* clone_impl() const override {
    auto* const other = new OfCard(device().index());
    other->state = state;
    return other;
  }

  std::array<uint64_t, 2> state{c10::default_rng_seed_val, 0};
};

}  // namespace generators

at::Generator new_generator(c10::DeviceIndex device) {
  return at::make_generator<generators::OfCard>(device < 0 ? current_device() : device);
}

const at::Generator& default_generator(c10::DeviceIndex device) {
  static auto* const all = [] {
    auto* const made = new std::vector<at::Generator>();
    for (c10::DeviceIndex index = 0; index < kMostDevices; ++index) {
      made->push_back(new_generator(index));
    }
    return made;
  }();
  return all->at(static_cast<size_t>(device < 0 ? current_device() : device));
}

void advance(at::Generator generator) {
  const std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_offset(generator.get_offset() + generators::kStep);
}

uint64_t next_seed(const at::Generator& generator) {
  constexpr uint64_t kSpread = 0x9E37'79B9'7F4A'7C15;  // so that seeds and offsets that are near each other are not
  return generator.current_seed() ^ ((generator.get_offset() + 1) * kSpread);
}

}  // namespace memleak
