// What a card refuses to do. See refusals.cpp.

#pragma once

#include "scratch.h"

#include <string>

namespace memleak {

struct Refusals {
  void (*types)(const Running&) = nullptr;  // by the types of its arguments, and where they are
  void (*places)(const Running&) = nullptr;  // by the values of its indices, once the shapes fit
};

// By the name of the operation without its namespace and overload.
Refusals refusals_of(const std::string& name);

// What a kernel of the card says when it finds, while it runs, that a value is wrong.
[[noreturn]] void assert_on_card(const std::string& why);

// While the error is handled that the CPU's kernel raised for arguments that are all known: raised again, as a card would,
// unless it says no more than that the CPU cannot do what a card may.
void raise_as_card(const c10::Error& error);

}  // namespace memleak
