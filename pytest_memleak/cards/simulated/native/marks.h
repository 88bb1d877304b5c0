// Tensors on the CPU whose values nobody computed. See marks.cpp.

#pragma once

#include "card.h"

namespace memleak {

bool marked(const at::Tensor& tensor);

// A new tensor with such values.
void mark(const at::Tensor& tensor);

// Such values were written to a tensor, or all of it was written over with known ones.
void mark_written(const at::Tensor& tensor);
void unmark_written(const at::Tensor& tensor);

// From here on for good: marked tensors outlive the card.
void follow_marks();

}  // namespace memleak
