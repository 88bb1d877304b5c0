// Values that go to the card, come back from it, or are read one at a time.

#include "kernels.h"

#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/empty_like.h>

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
    } else if (at::isFloatingType(self.scalar_type()) || at::isComplexType(self.scalar_type())) {
      const double stand_in = ask(Asked::kNumber, described(source));
      if (small) {
        self.fill_(stand_in);
      }
    } else {
      ask(Asked::kDecision, described(source));
      self.zero_();
    }
    return self;
  }
  if (!on_card(source)) {
    if (!self.is_contiguous()) {
      stage(self);
    }
    if (small && source.device().is_cpu()) {
      values_of(self).copy_(source);
    }
    written(self, small && source.device().is_cpu());
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
  if (at::isFloatingType(self.scalar_type())) {
    return ask(Asked::kNumber, described(self));
  }
  const double stand_in = ask(Asked::kDecision, described(self));
  return self.scalar_type() == at::kBool ? at::Scalar(stand_in != 0) : at::Scalar(static_cast<int64_t>(stand_in));
}

}  // namespace memleak
