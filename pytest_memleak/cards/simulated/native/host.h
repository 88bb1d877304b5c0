// The host's memory while a rank is played: large tensors of the CPU are counted, and their memory is left alone. See
// host.cpp.

#pragma once

#include "operation.h"

#include <ATen/core/Tensor.h>

namespace memleak {

bool host_is_played();

// Whether its memory is the CPU's own, and no stand-in's of a trace.
bool readable_on_host(const at::Tensor& tensor);

// Whether the tensor lies in such memory: it has a size, and no operation reads or writes it.
bool is_left_alone(const at::Tensor& tensor);

// All that the tensor covers was written: a system would have given it memory by now.
void note_written(const at::Tensor& tensor);

// host_operations.cpp: the operation's results, by its shapes alone. False: it has to be run.
bool run_on_shapes(const c10::OperatorHandle& op, const Operation& operation, Stack* stack);

// For what lies in a mapped file.
void take_mapped(const at::Tensor& tensor);

}  // namespace memleak
