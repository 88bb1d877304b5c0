// The memory that a card's matrix products keep.

#include "kernels.h"

#include <map>
#include <mutex>
#include <tuple>
#include <vector>

namespace memleak {
namespace workspaces {

using Handles = std::map<c10::DeviceIndex, int>;
using Key = std::tuple<int, c10::DeviceIndex, c10::StreamId, bool>;

std::mutex mutex;
std::map<Key, c10::DataPtr> taken;
std::vector<decltype(taken)> aside;
std::vector<int64_t> sizes;

// What torch gives cuBLASLt, as recorded on an H200.
constexpr int64_t kLight = int64_t{1} << 20;

// A thread has a handle of cuBLAS for each device; one that ends leaves them to the next that needs some.
struct Pool {
  std::mutex mutex;
  Handles made;
  std::map<c10::DeviceIndex, std::vector<int>> left;
};

Pool& pool() {
  static Pool* const one = new Pool();
  return *one;
}

struct OfThread {
  Handles handles;

  int on(c10::DeviceIndex device) {
    const auto found = handles.find(device);
    if (found != handles.end()) {
      return found->second;
    }
    const std::lock_guard<std::mutex> lock(pool().mutex);
    std::vector<int>& left = pool().left[device];
    int handle = 0;
    if (left.empty()) {
      handle = pool().made[device]++;
    } else {
      handle = left.back();
      left.pop_back();
    }
    handles.emplace(device, handle);
    return handle;
  }

  ~OfThread() {
    const std::lock_guard<std::mutex> lock(pool().mutex);
    for (const auto& [device, handle] : handles) {
      pool().left[device].push_back(handle);
    }
  }
};

thread_local OfThread mine;

}  // namespace workspaces

void take_workspace(c10::Device device, bool light) {
  const workspaces::Key key(workspaces::mine.on(device.index()), device.index(), current_stream(device.index()), light);
  {
    const std::lock_guard<std::mutex> lock(workspaces::mutex);
    if (workspaces::taken.count(key)) {
      return;
    }
  }
  const OnDevice on(device);
  const int64_t bytes = light ? workspaces::kLight : workspaces::sizes.at(static_cast<size_t>(device.index()));
  c10::DataPtr taken = allocate(static_cast<size_t>(bytes));
  const std::lock_guard<std::mutex> lock(workspaces::mutex);
  workspaces::taken.emplace(key, std::move(taken));
}

}  // namespace memleak

extern "C" {

using namespace memleak;

void memleak_card_workspace(int device, int64_t bytes) {
  if (workspaces::sizes.size() <= static_cast<size_t>(device)) {
    workspaces::sizes.resize(static_cast<size_t>(device) + 1);
  }
  workspaces::sizes[static_cast<size_t>(device)] = bytes;
}

void memleak_card_release_workspaces(void) {
  decltype(workspaces::taken) released;
  {
    const std::lock_guard<std::mutex> lock(workspaces::mutex);
    released.swap(workspaces::taken);
  }
}

// The workspaces of these cards stay as they are while others are there.
void memleak_card_set_aside(void) {
  const std::lock_guard<std::mutex> lock(workspaces::mutex);
  workspaces::aside.emplace_back();
  workspaces::aside.back().swap(workspaces::taken);
}

void memleak_card_take_back(void) {
  decltype(workspaces::taken) released;
  const std::lock_guard<std::mutex> lock(workspaces::mutex);
  released.swap(workspaces::taken);
  workspaces::taken.swap(workspaces::aside.back());
  workspaces::aside.pop_back();
}
}
