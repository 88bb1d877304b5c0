// Values that go to the card, come back from it, or are read one at a time.

#include "kernels.h"
#include "marks.h"

#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/is_nonzero.h>
#include <ATen/ops/zeros.h>

namespace memleak {
namespace {

void stage(const at::Tensor& like) {
  // What a card cannot copy as it lies goes through a temporary.
  const at::Tensor staged = at::empty_like(like, like.options(), at::MemoryFormat::Contiguous);
}

}  // namespace

at::Tensor& copy_(at::Tensor& self, const at::Tensor& from, bool non_blocking) {
  const WithoutPythonFunctions without;
  const at::Tensor source = from.sizes() == self.sizes() ? from : from.expand(self.sizes());
  if (self.numel() == 0) {
    return self;
  }
  const bool small = self.numel() <= kMostElements;
  for (const at::Tensor& one : {self, source}) {
    if (on_card(one) && is_elsewhere(one)) {
      ask(Asked::kElsewhere, described(one));
    }
  }
  if (!on_card(self)) {
    if (!source.is_contiguous()) {
      stage(source);
    }
    if (knows(source)) {
      self.copy_(values_of(source));
      return self;
    }
    if (const std::optional<bool> all = alike(source)) {
      self.fill_(*all);
      unmark_written(self);
      return self;
    }
    if (small) {
      self.fill_(placeholder(self.scalar_type()));
    }
    mark_written(self);
    return self;
  }
  if (!on_card(source)) {
    if (!self.is_contiguous()) {
      stage(self);
    }
    const bool is_known = small && source.device().is_cpu() && knows(source);
    if (is_known) {
      values_of(self).copy_(source);
    }
    written(self, is_known);
    return self;
  }
  if (self.device() != source.device() &&
      !(self.is_contiguous() && source.is_contiguous() && self.scalar_type() == source.scalar_type())) {
    stage(source);
  }
  const bool is_known = small && knows(source);
  if (is_known) {
    values_of(self).copy_(values_of(source));
  }
  written(self, is_known);
  return self;
}

at::Scalar number_of(const at::Tensor& self) {
  if (knows(self)) {
    return at::_local_scalar_dense(values_of(self));
  }
  if (const std::optional<bool> all = alike(self)) {
    return *all;
  }
  const bool number = at::isFloatingType(self.scalar_type()) || at::isComplexType(self.scalar_type());
  ask(number ? Asked::kNumber : Asked::kDecision, described(self));
  const at::Scalar found = placeholder(self.scalar_type());
  return self.scalar_type() == at::kBool ? at::Scalar(found.toBool()) : found;
}

bool truth_of(const at::Tensor& self) {
  if (knows(self)) {
    return at::is_nonzero(values_of(self));
  }
  if (self.numel() == 1) {
    if (const std::optional<bool> all = alike(self)) {
      return *all;
    }
    ask(Asked::kDecision, described(self));
  }
  return at::is_nonzero(at::zeros(self.sizes()));  // which has torch's words for a tensor of several values
}

}  // namespace memleak
