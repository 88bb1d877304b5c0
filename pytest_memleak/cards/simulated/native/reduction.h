// What a reduction on a card needs beside its result. See reduction.cpp.

#pragma once

#include "card.h"

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace memleak {

struct Shared {
  int64_t values = 0;  // bytes for what the blocks of a grid hand to one another
  int64_t counters = 0;  // bytes for who has finished
};

// The shape of a reduction as TensorIterator sees it, all neighbouring dimensions merged.
struct Reduced {
  int64_t outputs = 1;
  int64_t inputs = 1;  // for each output
  int64_t first_stride = 0;  // bytes between neighbours of the first reduced dimension
  int64_t kept_stride = 0;  // and of the first dimension that is kept
  int dimensions = 0;
  int reduced_dimensions = 0;
  int output_vector = 1;  // outputs that a thread can load at once
};

Shared shared_by_blocks(const Reduced& reduced, int64_t input_bytes, int64_t accumulated_bytes, const Facts& card);

// Takes what the reduction of `input` to `output` needs and gives it back; `kept` says that reduced dimensions are there
// with size 1. An empty list of dimensions means all.
void reduce_on_card(
    const at::Tensor& input, const at::Tensor& output, c10::IntArrayRef dims, bool kept, int64_t accumulated_bytes);

}  // namespace memleak
