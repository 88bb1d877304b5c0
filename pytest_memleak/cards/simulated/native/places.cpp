// Which cards are there now, where a process simulates others for a while.

#include "card.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace memleak {
namespace {

// Libraries keep small tables for the whole process, on whichever card they were first wanted; the caching allocator
// calls a block of this size small.
constexpr size_t kSmall = size_t{1} << 20;

std::vector<std::pair<uint64_t, uint64_t>> spaces;

}  // namespace

bool is_elsewhere(const at::Tensor& tensor) {
  const c10::Storage& storage = tensor.storage();
  if (storage.nbytes() <= kSmall) {
    return false;
  }
  const auto address = reinterpret_cast<uint64_t>(storage.data());
  return address != 0 && std::none_of(spaces.begin(), spaces.end(), [&](const auto& space) {
    return space.first <= address && address < space.second;
  });
}

}  // namespace memleak

extern "C" {

// The addresses of the cards that are there from now on: pairs of the first and the one after the last.
void memleak_card_here(const uint64_t* bounds, int count) {
  memleak::spaces.clear();
  for (int index = 0; index < count; ++index) {
    memleak::spaces.emplace_back(bounds[2 * index], bounds[2 * index + 1]);
  }
}
}
