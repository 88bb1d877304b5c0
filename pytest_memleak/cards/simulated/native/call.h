// One call of an operation, on tensors of another kind than it was made for. See call.cpp.

#pragma once

#include "operation.h"
#include "values.h"

#include <ATen/core/List.h>
#include <ATen/core/stack.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace memleak {

template <typename Each>
void each_tensor(const c10::IValue& value, const Each& each) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) {
      each(value.toTensor());
    }
  } else if (value.isList()) {
    for (const c10::IValue& one : value.toListRef()) {
      each_tensor(one, each);
    }
  } else if (value.isTuple()) {
    for (const c10::IValue& one : value.toTupleRef().elements()) {
      each_tensor(one, each);
    }
  }
}

// The value with every tensor and device put through `change`; lists keep their kind.
template <typename Change>
c10::IValue changed(const c10::IValue& value, const Change& change) {
  if (value.isTensor() || value.isDevice() || value.isGenerator()) {
    return change(value);
  }
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& one : value.toTensorVector()) {
      list.push_back(change(c10::IValue(one)).toTensor());
    }
    return list;
  }
  if (value.isList()) {
    c10::impl::GenericList list(value.toList().elementType());
    bool tensors = false;
    for (const c10::IValue& one : value.toListRef()) {
      tensors = tensors || one.isTensor();
      list.push_back(one.isTensor() ? change(one) : one);
    }
    return tensors ? c10::IValue(list) : value;
  }
  return value;
}

class Call {
 public:
  Call(const c10::OperatorHandle& op, const Operation& operation, at::ArrayRef<c10::IValue> arguments);

  c10::Device device() const {
    return device_;
  }

  // Where its random numbers come from.
  at::Generator generator() const;

  // The results of the operation on tensors without memory.
  Stack on_meta();

  // The results of the operation on what the arguments' memory holds.
  Stack on_cpu() const;

  // The same where the results are as large as `results` in any case.
  Stack on_cpu(const Stack& results) const;

  // Tensors on the card for what came out on the meta device.
  Stack on_card_again(const Stack& found);

  bool all_known() const;
  bool is_argument(const at::Tensor& tensor) const;

  template <typename Each>
  void each_read(size_t first, const Each& each) const {
    for (size_t index = first; index < arguments_.size(); ++index) {
      if (operation_.is_read[index]) {
        each_tensor(arguments_[index], each);
      }
    }
  }

  template <typename Each>
  void each_written(const Each& each) const {
    for (size_t index = 0; index < arguments_.size(); ++index) {
      if (operation_.writes(arguments_, index) && index != operation_.left_alone) {
        each_tensor(arguments_[index], each);
      }
    }
  }

 private:
  void check_device(const at::Tensor& tensor) const;
  Stack arguments_on_cpu() const;
  c10::IValue shadow(const c10::IValue& value, bool is_result);
  at::Tensor result(const at::Tensor& found, int view);
  Stack without_shape_function();

  const c10::OperatorHandle& op_;
  const Operation& operation_;
  at::ArrayRef<c10::IValue> arguments_;
  c10::Device device_;
  std::vector<std::pair<at::Tensor, at::Tensor>> originals_;  // what stands for a tensor, and the tensor
};

}  // namespace memleak
