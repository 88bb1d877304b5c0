// Storages by themselves, without a tensor: what torch's Python classes do with those of a card.
//
// A torch without CUDA leaves that code out, and one with CUDA looks for a driver; storages.py calls here instead. Bytes
// have no type, so that copying unknown ones to the CPU is no decision: a checkpoint that is saved, for instance.

#include "values.h"

#include <c10/core/StorageImpl.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

namespace memleak {
namespace {

// What the largest operation that is computed has of the widest common type.
constexpr size_t kMostBytes = kMostElements * sizeof(int64_t);

bool on_card(const c10::StorageImpl& storage) {
  return storage.device_type() == kCard;
}

// Whether the CPU got something that nobody computed.
bool copy_content(c10::StorageImpl& to, const c10::StorageImpl& from, size_t bytes) {
  if (bytes == 0) {
    return false;
  }
  const void* const source = from.data();
  const bool is_known = on_card(from) ? knows_values(source) : !on_card(to) || bytes <= kMostBytes;
  if (on_card(to)) {
    if (is_known && can_hold_values()) {
      std::memcpy(to.mutable_data(), source, bytes);
    }
    if (is_known && bytes == to.nbytes()) {
      learn_values(to.data());
    } else {
      forget_values(to.data());
    }
  } else if (is_known) {
    std::memcpy(to.mutable_data(), source, bytes);
  } else {
    if (bytes <= kMostBytes) {
      std::memset(to.mutable_data(), 0, bytes);
    }
    return true;
  }
  return false;
}

}  // namespace
}  // namespace memleak

extern "C" {

using namespace memleak;

// Both are c10::StorageImpl, at least one of them on the card and none beyond card and CPU, of the same size. 1: the CPU
// got something that nobody computed.
int memleak_card_copy_storage(void* to, const void* from) {
  const auto& source = *static_cast<const c10::StorageImpl*>(from);
  return copy_content(*static_cast<c10::StorageImpl*>(to), source, source.nbytes());
}

// The block of `fresh` becomes that of `storage`, with as much of its content as there is room for; the old one is freed.
void memleak_card_replace_storage(void* storage, void* fresh) {
  auto& old = *static_cast<c10::StorageImpl*>(storage);
  auto& block = *static_cast<c10::StorageImpl*>(fresh);
  const size_t bytes = block.nbytes();
  copy_content(block, old, std::min(old.nbytes(), bytes));
  old.set_data_ptr_noswap(block.set_data_ptr(c10::DataPtr(nullptr, old.device())));
  old.set_nbytes(bytes);
  block.set_nbytes(0);
}
}
