// The host's memory while a rank is played: large tensors of the CPU are counted, and their memory is left alone.
//
// A rank of a large model may hold all of it on the CPU, and eight of them do not fit on the machine that plays them. A
// system gives a tensor memory when it is first written to; so what is large is allocated as ever and never touched:
// operations on it get their results by shapes alone (host_operations.cpp). Such tensors are marked from the beginning (marks.cpp), so that
// every operation on them comes by here, and so that their values count as unknown.
//
// What would have been written is noted, by ranges of bytes: that is what a system would have committed. Tensors in mapped
// files are counted apart: their pages are the file's until somebody writes to them.

#include "host.h"

#include "marks.h"

#include <ATen/ops/empty_native.h>
#include <ATen/ops/empty_strided_native.h>
#include <c10/core/StorageImpl.h>
#include <torch/library.h>

#include <algorithm>
#include <map>
#include <memory>
#include <unordered_map>

namespace memleak {
namespace host {

// No operation that is small enough to be computed has a tensor of this size.
constexpr size_t kLarge = kMostElements * sizeof(int64_t);

struct Levels {
  int64_t allocated = 0;  // of large ones
  int64_t written = 0;  // of those
  int64_t mapped = 0;  // in files
  int64_t copied = 0;  // of mapped pages those that were written to, which are then the process's own
};

struct Block {
  c10::DataPtr own;
  int64_t bytes;
  bool mapped;
  int64_t users = 1;  // storages that begin there
  std::map<int64_t, int64_t> written;  // ranges of bytes: begin and end, apart from each other
};

using Count = int64_t (*)();

// They outlive static destructors: tensors are released after those ran.
std::mutex& mutex() {
  static std::mutex* const one = new std::mutex();
  return *one;
}
std::unordered_map<const void*, Block*>& blocks() {
  static auto* const all = new std::unordered_map<const void*, Block*>();
  return *all;
}

bool on = false;
// Bytes of all CPU tensors, as torch's allocator is counted: now, and at most since it was asked last.
Count current = nullptr, take_recent = nullptr;
Levels levels;
int64_t peak_committed = 0, peak_allocated = 0, peak_mapped = 0;
std::unique_ptr<torch::Library> factories;

int64_t not_committed() {
  return levels.allocated - levels.written - levels.copied;
}

// Between two changes of large tensors what is not committed stays the same, so the most of one is the most of the other.
// To be called before a change, and `begin_anew` after it.
void settle() {
  const int64_t most = take_recent();
  peak_allocated = std::max(peak_allocated, most);
  peak_committed = std::max(peak_committed, most - not_committed());
}

void begin_anew() {
  take_recent();
  const int64_t now = current();
  peak_allocated = std::max(peak_allocated, now);
  peak_committed = std::max(peak_committed, now - not_committed());
  peak_mapped = std::max(peak_mapped, levels.mapped);
}

struct Share {
  Block* block;
  c10::DataPtr own;
};

void release(void* context) {
  Share* const share = static_cast<Share*>(context);
  {
    const std::lock_guard<std::mutex> lock(mutex());
    settle();
    Block& block = *share->block;
    if (--block.users == 0) {
      int64_t written = 0;
      for (const auto& [begin, end] : block.written) {
        written += end - begin;
      }
      (block.mapped ? levels.copied : levels.written) -= written;
      (block.mapped ? levels.mapped : levels.allocated) -= block.bytes;
      blocks().erase(share->own.get());
      delete &block;
    }
  }
  delete share;  // which gives the memory back
  const std::lock_guard<std::mutex> lock(mutex());
  begin_anew();
}

// From here on the storage's end is told.
void adopt(const at::Tensor& tensor, bool mapped) {
  c10::StorageImpl* const storage = tensor.storage().unsafeGetStorageImpl();
  const auto bytes = static_cast<int64_t>(storage->nbytes());
  if (bytes == 0 || storage->data() == nullptr) {
    return;
  }
  const std::lock_guard<std::mutex> lock(mutex());
  Block*& block = blocks()[storage->data()];
  if (block == nullptr) {
    block = new Block{c10::DataPtr(), bytes, mapped};
    (mapped ? levels.mapped : levels.allocated) += bytes;
  } else {
    ++block->users;
  }
  Share* const share = new Share{block, c10::DataPtr()};
  void* const data = storage->mutable_data();
  share->own = storage->set_data_ptr(c10::DataPtr(nullptr, storage->device()));
  storage->set_data_ptr_noswap(c10::DataPtr(data, share, &release, storage->device()));
  begin_anew();
}

void settle_before_large(c10::IntArrayRef size, const std::optional<at::ScalarType>& dtype) {
  if (on && c10::multiply_integers(size) * static_cast<int64_t>(c10::elementSize(c10::dtype_or_default(dtype))) >
          static_cast<int64_t>(kLarge)) {
    const std::lock_guard<std::mutex> lock(mutex());
    settle();
  }
}

at::Tensor counted(at::Tensor made, const std::optional<bool>& pinned) {
  if (on && !pinned.value_or(false) && made.storage().nbytes() > kLarge) {
    adopt(made, false);
    mark(made);
  }
  return made;
}

at::Tensor empty(
    c10::IntArrayRef size,
    std::optional<at::ScalarType> dtype,
    std::optional<at::Layout> layout,
    std::optional<at::Device> device,
    std::optional<bool> pinned,
    std::optional<at::MemoryFormat> format) {
  settle_before_large(size, dtype);
  return counted(at::native::empty_cpu(size, dtype, layout, device, pinned, format), pinned);
}

at::Tensor empty_strided(
    c10::IntArrayRef size,
    c10::IntArrayRef stride,
    std::optional<at::ScalarType> dtype,
    std::optional<at::Layout> layout,
    std::optional<at::Device> device,
    std::optional<bool> pinned) {
  settle_before_large(size, dtype);
  return counted(at::native::empty_strided_cpu(size, stride, dtype, layout, device, pinned), pinned);
}

}  // namespace host

bool host_is_played() {
  return host::on;
}

bool readable_on_host(const at::Tensor& tensor) {
  return tensor.device().is_cpu() && !tensor.unsafeGetTensorImpl()->is_python_dispatch();
}

bool is_left_alone(const at::Tensor& tensor) {
  if (!host::on || !marked(tensor) || !readable_on_host(tensor) || !tensor.has_storage()) {
    return false;
  }
  const std::lock_guard<std::mutex> lock(host::mutex());
  return host::blocks().count(tensor.storage().data()) > 0;
}

void note_written(const at::Tensor& tensor) {
  if (tensor.numel() == 0) {
    return;
  }
  const std::lock_guard<std::mutex> lock(host::mutex());
  const auto found = host::blocks().find(tensor.storage().data());
  if (found == host::blocks().end()) {
    return;
  }
  host::Block& block = *found->second;
  const auto item = static_cast<int64_t>(tensor.itemsize());
  int64_t span = 1;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    span += (tensor.size(dim) - 1) * tensor.stride(dim);
  }
  int64_t begin = tensor.storage_offset() * item, end = std::min(begin + span * item, block.bytes);
  int64_t added = end - begin;
  auto next = block.written.upper_bound(begin);
  if (next != block.written.begin() && std::prev(next)->second >= begin) {
    --next;
  }
  while (next != block.written.end() && next->first <= end) {
    const int64_t from = std::max(next->first, begin), to = std::min(next->second, end);
    added -= std::max<int64_t>(0, to - from);
    begin = std::min(begin, next->first);
    end = std::max(end, next->second);
    next = block.written.erase(next);
  }
  block.written[begin] = end;
  host::settle();
  (block.mapped ? host::levels.copied : host::levels.written) += added;
  host::begin_anew();
}

void take_mapped(const at::Tensor& tensor) {
  if (!host::on || !readable_on_host(tensor) || !tensor.has_storage()) {
    return;
  }
  host::adopt(tensor, true);
  if (tensor.storage().nbytes() > host::kLarge) {
    mark(tensor);
  }
}

}  // namespace memleak

extern "C" {

using namespace memleak;

// From now on large tensors of the CPU are left alone. What torch's CPU allocator has given out: now, and at most since the
// last call.
void memleak_card_host_on(host::Count current, host::Count take_recent) {
  host::current = current;
  host::take_recent = take_recent;
  host::on = true;
  if (host::factories == nullptr) {
    const Unwarned unwarned;
    host::factories =
        std::make_unique<torch::Library>(torch::Library::IMPL, "aten", c10::DispatchKey::CPU, __FILE__, __LINE__);
    host::factories->impl("empty.memory_format", TORCH_FN(host::empty));
    host::factories->impl("empty_strided", TORCH_FN(host::empty_strided));
  }
}

void memleak_card_host_off(void) {
  host::factories.reset();
  host::on = false;
}

// Committed, allocated and mapped bytes: now, and at most since the last call.
void memleak_card_host_take(int64_t* out) {
  const std::lock_guard<std::mutex> lock(host::mutex());
  host::settle();
  host::begin_anew();
  out[0] = host::current() - host::not_committed();
  out[1] = host::current();
  out[2] = host::levels.mapped;
  out[3] = host::peak_committed;
  out[4] = host::peak_allocated;
  out[5] = host::peak_mapped;
  host::peak_committed = out[0];
  host::peak_allocated = out[1];
  host::peak_mapped = out[2];
}
}
