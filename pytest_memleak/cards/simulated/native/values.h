// What of the simulated card's values is known, and what a program gets in place of one that is not. See values.cpp.

#pragma once

#include "card.h"

#include <ATen/core/Generator.h>

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>

namespace memleak {

// Of all tensors of an operation together; beyond, its values are not computed.
constexpr int64_t kMostElements = int64_t{1} << 18;

enum class Asked : int { kNumber = 0, kDecision = 1, kOperation = 2, kElsewhere = 3, kMargin = 4 };

// Tells Python that a value is asked for that nobody knows.
void ask(Asked asked, const std::string& what);

// What stands in for it.
at::Scalar placeholder(at::ScalarType type);

// For the message about it.
std::string described(const at::Tensor& tensor);

bool on_card(const at::Tensor& tensor);

// Whether the values of a tensor, on the card or on the CPU, are those that a real card would have come to.
bool knows(const at::Tensor& tensor);

// Something has been written to a tensor of the card: all of it was known, or not.
void written(const at::Tensor& tensor, bool is_known);

// The same of whatever begins at an address, if memory can hold values at all.
bool can_hold_values();
bool knows_values(const void* address);
void learn_values(const void* address);

// All of a tensor of the card is true, or false, without that its memory says so; and what is known of one in that way.
void written_alike(const at::Tensor& tensor, bool truth);
std::optional<bool> alike(const at::Tensor& tensor);

// The memory of a tensor of the card, to be read and written by the CPU.
at::Tensor values_of(const at::Tensor& tensor);

// The CPU's random numbers are the next ones of a generator of the card, and leave the program's own alone.
class OwnRandomness {
 public:
  explicit OwnRandomness(const at::Generator& of);
  ~OwnRandomness();
  OwnRandomness(const OwnRandomness&) = delete;
  OwnRandomness& operator=(const OwnRandomness&) = delete;

 private:
  std::lock_guard<std::mutex> lock_;
  at::Generator generator_;
  at::Tensor theirs_;
};

}  // namespace memleak
