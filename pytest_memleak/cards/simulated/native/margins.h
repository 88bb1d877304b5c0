// What kernels of a card may take for themselves beyond what is simulated. See margins.cpp.

#pragma once

#include "scratch.h"

#include <string>

namespace memleak {

struct Margin {
  double share = 0;  // of the bytes that the operation reads and writes
  int64_t bytes = 0;
  bool (*concerns)(const Running&) = nullptr;  // null: every run
};

// By the name of the operation without its namespace and overload; nothing for most.
Margin margin_of(const std::string& name);

// Says that a run of the operation on this card may have taken more than was simulated, and how much at most.
void tell_margin(const Margin& margin, const std::string& name, const Running& running, c10::Device device);

}  // namespace memleak
