// The parts of the kernel of all operations. See kernels.cpp.

#pragma once

#include "call.h"

#include <ATen/PythonTorchFunctionTLS.h>

#include <optional>

namespace memleak {

// While it lives, no subclass of a tensor is asked: what runs inside a kernel is nothing that a program called.
class WithoutPythonFunctions {
 public:
  WithoutPythonFunctions() : before_(at::impl::PythonTorchFunctionTLS::get_disabled_state()) {
    at::impl::PythonTorchFunctionTLS::set_disabled_state(at::impl::TorchFunctionDisabledState::ALL_DISABLED);
  }
  ~WithoutPythonFunctions() {
    at::impl::PythonTorchFunctionTLS::set_disabled_state(before_);
  }

 private:
  at::impl::TorchFunctionDisabledState before_;
};

// ---- certain.cpp

// What all elements of the result are, whatever the unknown arguments hold: "true or unknown" is true, and numbers that
// nobody computed are taken to be finite.
std::optional<bool> certain(const Operation& operation, at::ArrayRef<c10::IValue> arguments);

// ---- shapes.cpp

// The results of an operation whose shapes come from values.
Stack by_values(const Call& call, const Operation& operation, at::ArrayRef<c10::IValue> arguments);

// Masks among the indices are turned into places, which takes memory of its own; whether there were any.
bool with_places(at::ArrayRef<c10::IValue> arguments, c10::IValue& indices);

// A number that is put where one mask says so is filled in.
bool fills_mask(const Operation& operation, at::ArrayRef<c10::IValue> arguments, at::Tensor& mask);

// ---- workspaces.cpp

// Each thread's first product on a stream takes the workspace that torch gives cuBLAS; the first with a bias, which
// cuBLASLt adds in the same kernel, takes one for that.
void take_workspace(c10::Device device, bool light);

// ---- copies.cpp

at::Tensor& copy_(at::Tensor& self, const at::Tensor& from, bool non_blocking);
at::Scalar number_of(const at::Tensor& self);
bool truth_of(const at::Tensor& self);

}  // namespace memleak
