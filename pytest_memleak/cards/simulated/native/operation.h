// What the schema of an operation says about it, and what its name does. See operation.cpp.

#pragma once

#include "margins.h"
#include "refusals.h"
#include "scratch.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

namespace memleak {

using Stack = torch::jit::Stack;

// What an operation comes to where the CPU has no kernel for it: from its arguments, on the CPU, and its results' shapes.
using ByHand = Stack (*)(const c10::FunctionSchema& schema, const Stack& arguments, const Stack& results);

// attention_values.cpp; null for what is no attention.
ByHand attention_by_hand(const std::string& name);

// normalization.cpp; null for what is no batch norm.
ByHand normalization_by_hand(const std::string& name);

struct Operation {
  std::string name;
  std::vector<bool> is_read;
  std::vector<bool> is_written;
  std::vector<int> view_of;  // for each result the argument that it is a view of, or -1
  std::vector<size_t> order;  // in which the results get their memory
  bool random = false;
  bool shape_from_values = false;
  bool takes_cpu = false;
  bool hands_back = false;  // its results are what it was given for them
  bool product = false;
  bool only_views = false;
  bool one_by_one = false;  // the tensors of lists, so that they may be on several devices
  bool cudnn_attention = false;
  bool composite = false;  // on the CPU: torch puts it together from others
  bool makes_own_values = false;  // takes but a shape from its arguments
  std::vector<size_t> decided_by;  // arguments by whose values the shapes of the results go, or results that are no tensors
  size_t left_alone = SIZE_MAX;  // an argument that is written to for numbers alone that are not finite
  size_t on_cpu_from = SIZE_MAX;  // results from here on are the CPU's
  size_t factor_of_self = SIZE_MAX;  // an argument: the first one is not read where this is zero
  size_t writes_if = SIZE_MAX;  // an argument: unless it is true, nothing is written to
  Scratch scratch;
  Margin margin;
  Refusals refusals;
  ByHand by_hand = nullptr;

  bool writes(at::ArrayRef<c10::IValue> arguments, size_t index) const {
    return is_written[index] && (writes_if == SIZE_MAX || arguments[writes_if].toBool());
  }
};

bool one_of(const std::string& name, std::initializer_list<const char*> names);

// Read once, kept for good.
const Operation& look_up(const c10::OperatorHandle& op);

}  // namespace memleak
