// What kernels of a card take for themselves while they run. See scratch.cpp.

#pragma once

#include "card.h"

#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <string>
#include <vector>

namespace memleak {

using Kept = std::vector<c10::DataPtr>;

// One run of an operation; the results are empty until they have their memory.
struct Running {
  const c10::FunctionSchema& schema;
  at::ArrayRef<c10::IValue> arguments;
  at::ArrayRef<c10::IValue> results;

  // The argument of that name; none if the operation has no such argument.
  c10::IValue argument(const char* name) const;
  const at::Tensor& tensor(size_t index) const {
    return arguments[index].toTensor();
  }
};

struct Scratch {
  Kept (*before)(const Running&) = nullptr;  // taken before the results, kept until the operation is done
  void (*with_result)(const Running&, size_t index) = nullptr;  // taken and given back when that one has its memory
  void (*after)(const Running&) = nullptr;  // taken and given back once the results have their memory
  bool (*first_is_last)(const Running&) = nullptr;  // whether the first of the results gets its memory last
  int64_t (*elements)(const Running&) = nullptr;  // of the result's memory, where its shape needs less; 0: it does not
};

// By the name of the operation without its namespace and overload.
Scratch scratch_of(const std::string& name);

}  // namespace memleak
