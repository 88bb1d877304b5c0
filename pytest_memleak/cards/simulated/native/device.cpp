// A CUDA device that is not there: torch takes its tensors for CUDA tensors, and asks for their memory here.
//
// Built on first use by library.py, called by ctypes. Here is what torch asks of a device: a guard, the hooks of CUDA,
// an allocator, and the operations that make tensors and views; kernels.cpp has all others. Memory is address space: its
// pages come into being when something is written there.

#include "card.h"
#include "generators.h"

#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <sys/mman.h>

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

extern "C" {
int Py_IsInitialized(void);
int PyGILState_Ensure(void);
void PyGILState_Release(int);
void PyErr_Fetch(void**, void**, void**);
void PyErr_Restore(void*, void*, void*);
}

namespace memleak {
namespace {

using Index = c10::DeviceIndex;
using Take = void* (*)(int64_t bytes, int device, int64_t stream);
using Give = void (*)(void* address);

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::CUDA);

// torch asks no card for as much; a size that was negative becomes one.
constexpr size_t kTooMany = size_t{1} << 60;

Index devices = 0;
Take take = nullptr;
Give give = nullptr;
std::vector<Facts> facts;
thread_local Index current = 0;
thread_local std::array<c10::StreamId, kMostDevices> streams{};  // of each device, what this thread works on
std::array<std::atomic<uint32_t>, 2> streams_made{};  // of common ones, and of urgent ones
thread_local std::string refusal;
thread_local bool refused_for_want_of_room = true;

// ---- device and streams: everything is done when it returns ------------------------------------------------------

// torch makes so many for each priority, and hands them out in turn; the first is the default one.
constexpr uint32_t kStreams = 32;

c10::Stream stream_of(c10::Device device, c10::StreamId id) {
  return c10::Stream(c10::Stream::UNSAFE, device, id);
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override {
    return kCard;
  }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    current = device.index();
    return before;
  }
  c10::Device getDevice() const override {
    return {kCard, current};
  }
  void setDevice(c10::Device device) const override {
    current = device.index();
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    current = device.index();
  }
  c10::Stream getStream(c10::Device device) const noexcept override {
    const Index index = device.has_index() ? device.index() : current;
    return stream_of({kCard, index}, streams[static_cast<size_t>(index)]);
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool urgent = false) const override {
    return getNewStream(device, urgent ? -1 : 0);
  }
  c10::Stream getNewStream(c10::Device device, int priority = 0) const override {
    const bool urgent = priority < 0;
    const uint32_t number = 1 + streams_made[urgent]++ % kStreams;
    return stream_of(device.has_index() ? device : getDevice(), urgent ? kStreams + number : number);
  }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override {
    const c10::Stream before = getStream(stream.device());
    streams[static_cast<size_t>(stream.device_index())] = stream.id();
    return before;
  }
  Index deviceCount() const noexcept override {
    return kMostDevices;
  }
  void record(void** event, const c10::Stream&, const Index, const c10::EventFlag) const override {
    *event = const_cast<Guard*>(this);
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override {
    return true;
  }
  void destroyEvent(void*, const Index) const noexcept override {}
  bool queryStream(const c10::Stream&) const override {
    return true;
  }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const Index) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
  double elapsedTime(void*, void*, const Index) const override {
    return 0.0;
  }
};

const Guard guard;

// ---- memory ------------------------------------------------------------------------------------------------------

void release(void* address) {
  if (address == nullptr) {
    return;
  }
  forget_values(address);
  if (give != nullptr && python_is_there()) {
    const InPython in_python;
    give(address);
  }
}

struct CardMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device device(kCard, current);
    if (bytes == 0) {
      return {nullptr, nullptr, &release, device};
    }
    // Numbers as text: some compilers bring streams of their own, which do not get on with those of torch.
    TORCH_CHECK(current < devices, "CUDA error: invalid device ordinal (", device, " of ", std::to_string(devices), ")");
    TORCH_CHECK_WITH(
        OutOfMemoryError, bytes < kTooMany, "CUDA out of memory. Tried to allocate more than 1EB memory.");
    refusal.clear();
    refused_for_want_of_room = true;
    void* address = nullptr;
    {
      const InPython in_python;
      address = take(static_cast<int64_t>(bytes), current, current_stream(current));
    }
    TORCH_CHECK(address != nullptr || refused_for_want_of_room, refusal);
    TORCH_CHECK_WITH(
        OutOfMemoryError, address != nullptr, refusal.empty() ? "the simulated card gave no reason" : refusal);
    return {address, address, &release, device};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return &release;
  }
  void copy_data(void*, const void*, size_t) const override {}
};

CardMemory memory;

// ---- what ATen asks of CUDA --------------------------------------------------------------------------------------

struct Hooks final : at::CUDAHooksInterface {
  void init() const override {}
  // Not marked as overriding: not all releases ask for these.
  bool isBuilt() const {
    return true;
  }
  bool isAvailable() const {
    return devices > 0;
  }
  const at::Generator& getDefaultGenerator(Index device = -1) const {
    return default_generator(device);
  }
  at::Generator getNewGenerator(Index device = -1) const {
    return new_generator(device);
  }
  bool hasCuBLASLt() const {
    return true;
  }
  bool supportsBFloat16RNNWithCuDNN() const {
    return true;
  }
  long versionRuntimeCuDNN() const {
    return versionCuDNN();
  }
  bool hasCUDA() const override {
    return devices > 0;
  }
  bool hasCUDART() const override {
    return devices > 0;
  }
  bool hasCuDNN() const override {
    return true;
  }
  bool hasPrimaryContext(Index) const override {
    return true;
  }
  Index deviceCount() const override {
    return devices;
  }
  int getNumGPUs() const override {
    return devices;
  }
  Index current_device() const override {
    return current;
  }
  Index getCurrentDevice() const override {
    return current;
  }
  void setCurrentDevice(Index device) const override {
    current = device;
  }
  Index exchangeDevice(Index device) const override {
    const Index before = current;
    current = device;
    return before;
  }
  Index maybeExchangeDevice(Index device) const override {
    return device < 0 ? current : exchangeDevice(device);
  }
  bool compiledWithCuDNN() const override {
    return true;
  }
  long versionCuDNN() const override {
    return 91600;
  }
  bool supportsDilatedConvolutionWithCuDNN() const override {
    return true;
  }
  bool supportsDepthwiseConvolutionWithCuDNN() const override {
    return true;
  }
  bool supportsBFloat16ConvolutionWithCuDNNv8() const override {
    return true;
  }
  double batchnormMinEpsilonCuDNN() const override {
    return 0.0;
  }
  bool hasMAGMA() const override {
    return true;
  }
  bool hasCuSOLVER() const override {
    return true;
  }
  long versionCUDART() const override {
    return 13000;
  }
  std::string showConfig() const override {
    return "  - CUDA Runtime 13.0\n  - CuDNN 91.6\n";
  }
  // Plans are no memory of torch's.
  int64_t cuFFTGetPlanCacheMaxSize(Index) const override {
    return 4096;
  }
  void cuFFTSetPlanCacheMaxSize(Index, int64_t) const override {}
  int64_t cuFFTGetPlanCacheSize(Index) const override {
    return 0;
  }
  void cuFFTClearPlanCache(Index) const override {}
  at::Allocator* getPinnedMemoryAllocator() const override {
    return c10::GetCPUAllocator();
  }
  void deviceSynchronize(Index) const override {}
};

Hooks hooks;
void* their_face = nullptr;

// torch makes its hooks once, at the first question. They have no members, only a table of functions: for as long as
// the card is there, that table is this one.
void** face_of_hooks() {
  static_assert(sizeof(at::CUDAHooksInterface) == sizeof(void*), "the hooks of CUDA have members");
  return reinterpret_cast<void**>(const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks()));
}

// ---- tensors and views -------------------------------------------------------------------------------------------

at::Tensor empty(
    c10::IntArrayRef size,
    std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>,
    std::optional<at::Device> device,
    std::optional<bool>,
    std::optional<at::MemoryFormat> format) {
  const OnDevice on(device);
  return at::detail::empty_generic(size, &memory, kKeys, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(
    c10::IntArrayRef size,
    c10::IntArrayRef stride,
    std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>,
    std::optional<at::Device> device,
    std::optional<bool>) {
  const OnDevice on(device);
  return at::detail::empty_strided_generic(size, stride, &memory, kKeys, c10::dtype_or_default(dtype));
}

at::Tensor as_strided(
    const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

at::Tensor view(const at::Tensor& self, c10::IntArrayRef size) {
  return at::native::view(self, size);
}

// A storage that grows gets a new block; the old one lives until the new one is there.
const at::Tensor& resize_(const at::Tensor& self, c10::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  auto* const tensor = self.unsafeGetTensorImpl();
  tensor->set_sizes_contiguous(size);
  if (format) {
    tensor->empty_tensor_restride(*format);
  }
  const size_t needed = tensor->numel() == 0 ? 0 : (tensor->numel() + tensor->storage_offset()) * tensor->itemsize();
  auto* const storage = tensor->unsafe_storage().unsafeGetStorageImpl();
  if (storage->nbytes() < needed) {
    const OnDevice on(self.device());
    storage->set_data_ptr_noswap(memory.allocate(needed));
    storage->set_nbytes(needed);
  }
  return self;
}

at::Tensor& set_storage(
    at::Tensor& self, c10::Storage source, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  auto* const tensor = self.unsafeGetTensorImpl();
  tensor->set_storage_keep_dtype(std::move(source));
  tensor->set_storage_offset(offset);
  if (stride.data() != nullptr) {
    tensor->set_sizes_and_strides(size, stride);
  } else {
    tensor->set_sizes_contiguous(size);
  }
  return self;
}

// As torch has it: all of the storage, as one row.
at::Tensor& set_whole_storage(at::Tensor& self, c10::Storage source) {
  const auto size = static_cast<int64_t>(source.nbytes() / self.dtype().itemsize());
  return set_storage(self, std::move(source), 0, {size}, {});
}

// Everything is done when it returns; what cannot be told so is for features.py.
void record_stream(at::Tensor&, c10::Stream) {}

std::unique_ptr<torch::Library> operations;

}  // namespace

Index current_device() {
  return current;
}

c10::StreamId current_stream(Index device) {
  return streams[static_cast<size_t>(device)];
}

const Facts& facts_of(Index device) {
  return facts.at(static_cast<size_t>(device));
}

OnDevice::OnDevice(std::optional<c10::Device> device) : before_(current) {
  if (device && device->has_index()) {
    current = device->index();
  }
}

OnDevice::~OnDevice() {
  current = before_;
}

c10::DataPtr allocate(size_t bytes) {
  return memory.allocate(bytes);
}

at::Tensor empty_strided_on(c10::Device device, c10::IntArrayRef size, c10::IntArrayRef stride, at::ScalarType dtype) {
  const OnDevice on(device);
  return at::detail::empty_strided_generic(size, stride, &memory, kKeys, dtype);
}

InPython::InPython() : lock_(PyGILState_Ensure()) {
  PyErr_Fetch(&type_, &value_, &trace_);
}

InPython::~InPython() {
  PyErr_Restore(type_, value_, trace_);
  PyGILState_Release(lock_);
}

bool python_is_there() {
  return Py_IsInitialized() != 0;
}

}  // namespace memleak

extern "C" {

using namespace memleak;

// Reserves address space at a fixed place, so that addresses are the same in every run. 0: it is there and can hold
// values; 1: it is there and cannot; 2: the system refuses.
int memleak_card_space(uint64_t address, uint64_t bytes) {
  void* const place = reinterpret_cast<void*>(address);
  const int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
  if (mmap(place, bytes, PROT_READ | PROT_WRITE, kind, -1, 0) == place) {
    madvise(place, bytes, MADV_DONTDUMP);
    return 0;
  }
  return mmap(place, bytes, PROT_NONE, kind, -1, 0) == place ? 1 : 2;
}

void memleak_card_refuse(const char* why, int for_want_of_room) {
  refusal = why;
  refused_for_want_of_room = for_want_of_room != 0;
}

int memleak_card_device(void) {
  return current;
}

// For torch's storages, which take an allocator as a number.
uint64_t memleak_card_allocator(void) {
  return reinterpret_cast<uint64_t>(static_cast<c10::Allocator*>(&memory));
}

void memleak_card_set_device(int device) {
  current = static_cast<Index>(device);
}

int64_t memleak_card_stream(int device) {
  return current_stream(static_cast<Index>(device));
}

void memleak_card_set_stream(int device, int64_t stream) {
  streams[static_cast<size_t>(device)] = stream;
}

void memleak_card_facts(int device, int major, int minor, int processors, int threads, int prefers_cudnn) {
  if (facts.size() <= static_cast<size_t>(device)) {
    facts.resize(static_cast<size_t>(device) + 1);
  }
  facts[static_cast<size_t>(device)] = {major, minor, processors, threads, prefers_cudnn != 0};
}

void memleak_card_on(int count, Take taking, Give giving) {
  devices = static_cast<Index>(count);
  take = taking;
  give = giving;
  if (operations != nullptr) {
    return;
  }
  c10::impl::device_guard_impl_registry[static_cast<size_t>(kCard)].store(&guard);
  void** const face = face_of_hooks();
  their_face = *face;
  *face = *reinterpret_cast<void**>(&hooks);
  const Unwarned unwarned;
  operations =
      std::make_unique<torch::Library>(torch::Library::IMPL, "aten", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  operations->impl("empty.memory_format", TORCH_FN(empty));
  operations->impl("empty_strided", TORCH_FN(empty_strided));
  operations->impl("as_strided", TORCH_FN(as_strided));
  operations->impl("view", TORCH_FN(view));
  operations->impl("resize_", TORCH_FN(resize_));
  operations->impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage));
  operations->impl("set_.source_Storage", TORCH_FN(set_whole_storage));
  operations->impl("record_stream", TORCH_FN(record_stream));
  kernels_on();
}

// Tensors that are still alive keep their memory and give it back as before.
void memleak_card_off(void) {
  if (operations == nullptr) {
    return;
  }
  kernels_off();
  operations.reset();
  *face_of_hooks() = their_face;
  devices = 0;
  current = 0;
  streams = {};
}

// The interpreter is about to end: what dies after it is not told.
void memleak_card_end(void) {
  give = nullptr;
}
}
