// Counts every block of torch's CPU allocator, and refuses what goes over a cap.
//
// Built on first use by native.py, called by ctypes: plain C functions, no exception may leave them.
// Whatever a deleter reaches lives for ever: tensors are released after static destructors ran.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/StorageImpl.h>
#include <c10/util/Exception.h>

#include "at_peak.h"

#include <pthread.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <string>
#include <unordered_map>

namespace {

constexpr int64_t kNoCap = INT64_MAX;

void raise_to(std::atomic<int64_t>& highest, int64_t level) {
  int64_t seen = highest.load(std::memory_order_relaxed);
  while (level > seen && !highest.compare_exchange_weak(seen, level)) {
  }
}

// ---- the blocks alive, by address -------------------------------------------------------------------------------

struct Block {
  int64_t bytes;
  uint64_t number;
  memleak::Mark mark;
};

struct alignas(64) Shard {
  std::mutex mutex;
  std::unordered_map<void*, Block> blocks;
};

constexpr size_t kShards = 64;
using Shards = std::array<Shard, kShards>;

Shards& shards() {
  static Shards* const all = new Shards();
  return *all;
}

Shard& shard_of(void* address) {
  // Blocks are 64 bytes apart at least; the multiplication spreads neighbours over all shards.
  const uint64_t spread = (reinterpret_cast<uint64_t>(address) >> 6) * 0x9E3779B97F4A7C15ull;
  return shards()[spread >> 58];
}

std::atomic<int64_t> current{0};
std::atomic<int64_t> peak{0};
std::atomic<int64_t> recent_peak{0};  // the same for another reader, who takes it more often
std::atomic<int64_t> cap{kNoCap};
std::atomic<int64_t> refusals{0};
std::atomic<uint64_t> sequence{1};  // of the latest block; 0 is the number of those that were adopted

c10::Allocator* inner = nullptr;
c10::DeleterFnPtr inner_deleter = nullptr;

void remember(void* address, int64_t bytes, uint64_t number, memleak::Mark mark = {}) {
  Shard& shard = shard_of(address);
  std::lock_guard<std::mutex> guard(shard.mutex);
  shard.blocks[address] = Block{bytes, number, mark};
}

void release(void* address) {
  if (!address) {
    return;
  }
  Block block{};
  {
    // Forgotten before it is released: afterwards another thread may be given the same address.
    Shard& shard = shard_of(address);
    std::lock_guard<std::mutex> guard(shard.mutex);
    auto found = shard.blocks.find(address);
    if (found != shard.blocks.end()) {
      block = found->second;
      shard.blocks.erase(found);
    }
  }
  memleak::at_peak().released(block.bytes, block.mark);
  inner_deleter(address);
  current.fetch_sub(block.bytes);
}

std::string readable(int64_t bytes) {
  const char* units[] = {"bytes", "KiB", "MiB", "GiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (unit < 3 && value >= 1024.0) {
    value /= 1024.0;
    ++unit;
  }
  char text[64];
  std::snprintf(text, sizeof(text), unit ? "%.2f %s" : "%.0f %s", value, units[unit]);
  return text;
}

void refuse(int64_t asked, int64_t held, int64_t limit) {
  refusals.fetch_add(1);
  TORCH_CHECK_WITH(
      OutOfMemoryError,
      false,
      "CPU out of memory. Tried to allocate ",
      readable(asked),
      ". The CPU stands in for the card here, and the card has a total capacity of ",
      readable(limit),
      " (the cap pytest-memleak was given) of which ",
      readable(held < limit ? limit - held : 0),
      " is free. Of the capacity ",
      readable(held),
      " is allocated by PyTorch.");
}

// Takes the bytes before they are allocated, so that two threads cannot both take the last ones; returns the new level.
int64_t take(int64_t bytes) {
  int64_t held = current.load();
  int64_t limit;
  do {
    limit = cap.load(std::memory_order_relaxed);
    if (bytes > limit - held) {
      memleak::at_peak().reached(held, bytes, true);
      refuse(bytes, held, limit);
    }
  } while (!current.compare_exchange_weak(held, held + bytes));
  return held + bytes;
}

struct CountingAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    const c10::Device cpu(c10::DeviceType::CPU);
    const int64_t bytes = static_cast<int64_t>(size);
    const int64_t level = take(bytes);
    void* address = nullptr;
    try {
      address = inner->allocate(size).release_context();
    } catch (...) {
      current.fetch_sub(bytes);
      refusals.fetch_add(1);
      throw;
    }
    if (!address) {
      current.fetch_sub(bytes);
      return {nullptr, nullptr, &release, cpu};
    }
    raise_to(peak, level);
    raise_to(recent_peak, level);
    remember(address, bytes, sequence.fetch_add(1) + 1, memleak::at_peak().allocated(bytes, level));
    memleak::at_peak().reached(level, bytes, false);
    return {address, address, &release, cpu};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return &release;
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

CountingAllocator& counting() {
  static CountingAllocator* const allocator = new CountingAllocator();
  return *allocator;
}

// ---- fork: no lock may be held by a thread that the child does not have -----------------------------------------

void before_fork() {
  for (Shard& shard : shards()) {
    shard.mutex.lock();
  }
  memleak::at_peak().mutex().lock();
}

void after_fork() {
  memleak::at_peak().mutex().unlock();
  for (Shard& shard : shards()) {
    shard.mutex.unlock();
  }
}

}  // namespace

extern "C" {

// 0: counting. 1: the allocator in place cannot be wrapped.
int memleak_install() {
  if (inner) {
    return 0;
  }
  c10::Allocator* const found = c10::GetCPUAllocator();
  if (!found || !found->raw_deleter()) {
    return 1;
  }
  pthread_atfork(&before_fork, &after_fork, &after_fork);
  inner = found;
  inner_deleter = found->raw_deleter();
  c10::SetCPUAllocator(&counting(), UINT8_MAX);
  return 0;
}

int memleak_in_place() {
  return c10::GetCPUAllocator() == &counting();
}

// Counts a storage that was allocated before the engine came; it is released like any other from then on.
// 1: it is counted now, or was already. 0: its memory is not the CPU allocator's.
int memleak_adopt(void* storage_impl) {
  try {
    auto* storage = static_cast<c10::StorageImpl*>(storage_impl);
    if (!inner || storage->device_type() != c10::DeviceType::CPU) {
      return 0;
    }
    c10::DataPtr& data = storage->_mutable_data_ptr_no_checks();
    if (storage->allocator() == inner) {
      storage->set_allocator(&counting());  // so that growing it is seen, too
    }
    if (!data.get()) {
      return 1;
    }
    if (data.get() == data.get_context() && data.compare_exchange_deleter(inner_deleter, &release)) {
      const int64_t bytes = static_cast<int64_t>(storage->nbytes());
      remember(data.get(), bytes, 0);
      const int64_t level = current.fetch_add(bytes) + bytes;
      raise_to(peak, level);
      raise_to(recent_peak, level);
      return 1;
    }
    return data.get_deleter() == &release;
  } catch (...) {
    return 0;  // a symbolic size: no real memory
  }
}

int64_t memleak_current() {
  return current.load();
}

// The highest level since the last call; starts anew from the level now.
int64_t memleak_take_peak() {
  const int64_t highest = peak.exchange(current.load());
  raise_to(peak, current.load());
  return highest;
}

int64_t memleak_take_recent_peak() {
  const int64_t highest = recent_peak.exchange(current.load());
  raise_to(recent_peak, current.load());
  return highest;
}

int64_t memleak_peak() {
  return peak.load();
}

void memleak_set_cap(int64_t bytes) {
  cap.store(bytes < 0 ? kNoCap : bytes);
}

int64_t memleak_refusals() {
  return refusals.load();
}

uint64_t memleak_sequence() {
  return sequence.load();
}

int memleak_knows(void* address) {
  Shard& shard = shard_of(address);
  std::lock_guard<std::mutex> guard(shard.mutex);
  return shard.blocks.count(address) != 0;
}

// What each place holds at the peak, and the peak's level, from now on until it ends.
void memleak_record_begin(memleak::Here here, int64_t smallest) {
  memleak::at_peak().begin(here, smallest, current.load());
}

void memleak_record_end() {
  memleak::at_peak().end();
}

void memleak_record_notice(int on) {
  memleak::at_peak().notice(on, current.load());
}

int64_t memleak_record_read(memleak::Held* out, int64_t room, int64_t* level) {
  return memleak::at_peak().read(out, room, level);
}

// `reached` is called once so much is held, and whenever the cap refuses; nullptr: nobody is called.
void memleak_watch(memleak::Reached reached, int64_t level) {
  memleak::at_peak().watch(reached, level);
}

// The place that allocated the block at this address; 0 if it was before, or is none.
uint32_t memleak_place_of(void* address) {
  Shard& shard = shard_of(address);
  std::lock_guard<std::mutex> guard(shard.mutex);
  auto found = shard.blocks.find(address);
  return found == shard.blocks.end() ? memleak::kBefore : memleak::at_peak().place_of(found->second.mark);
}

// Writes at most `room` blocks numbered above `mark` (0: all, adopted ones too); returns how many there are.
int64_t memleak_live_since(uint64_t mark, uint64_t* addresses, int64_t* bytes, int64_t room) {
  int64_t count = 0;
  for (Shard& shard : shards()) {
    std::lock_guard<std::mutex> guard(shard.mutex);
    for (const auto& [address, block] : shard.blocks) {
      if (mark && block.number <= mark) {
        continue;
      }
      if (count < room) {
        addresses[count] = reinterpret_cast<uint64_t>(address);
        bytes[count] = block.bytes;
      }
      ++count;
    }
  }
  return count;
}
}
