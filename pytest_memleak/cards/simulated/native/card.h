// What the files of the simulated card share. Each part has a header of its own where it has more to say.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/Device.h>
#include <c10/core/Stream.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <optional>

namespace memleak {

constexpr c10::DeviceType kCard = c10::DeviceType::CUDA;

// Threads of the autograd engine are made once, one for each device that the guard tells of.
constexpr c10::DeviceIndex kMostDevices = 16;

// ---- device.cpp

c10::DeviceIndex current_device();

// Which of the device's streams this thread works on.
c10::StreamId current_stream(c10::DeviceIndex device);

// The device that allocations of this thread are for, until it goes out of scope.
class OnDevice {
 public:
  explicit OnDevice(std::optional<c10::Device> device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  c10::DeviceIndex before_;
};

// Memory of the current device; throws torch's OutOfMemoryError.
c10::DataPtr allocate(size_t bytes);

// What of a card decides over how torch's kernels go about their work.
struct Facts {
  int major = 0;
  int minor = 0;
  int processors = 0;
  int threads = 0;  // what one processor holds at once
  bool prefers_cudnn = false;  // for attention
};

const Facts& facts_of(c10::DeviceIndex device);

at::Tensor empty_strided_on(c10::Device device, c10::IntArrayRef size, c10::IntArrayRef stride, at::ScalarType dtype);

// Python's own, which every extension module finds in its process; its headers need not be installed. Tensors die while
// an error is on its way, too: Python code that is called then must not find it.
class InPython {
 public:
  InPython();
  ~InPython();
  InPython(const InPython&) = delete;
  InPython& operator=(const InPython&) = delete;

 private:
  int lock_;
  void* type_ = nullptr;
  void* value_ = nullptr;
  void* trace_ = nullptr;
};

bool python_is_there();

// torch warns of a kernel that takes the place of another, which is the purpose here.
class Unwarned {
 private:
  struct Silence final : c10::WarningHandler {
    void process(const c10::Warning&) override {}
  };
  Silence silence_;
  c10::WarningUtils::WarningHandlerGuard guard_{&silence_};
};

// ---- attention.cpp

int64_t attention_choice(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value,
    const std::optional<at::Tensor>& mask,
    double dropout,
    bool causal,
    std::optional<double> scale,
    bool grouped);
void attention_on();
void attention_off();

// ---- places.cpp

// Whether the tensor's memory is another card's than those that are there now, and too large to let pass.
bool is_elsewhere(const at::Tensor& tensor);

// ---- kernels.cpp

void kernels_on();
void kernels_off();

// ---- values.cpp

// A block went back to the card: its values are gone.
void forget_values(const void* address);

}  // namespace memleak
