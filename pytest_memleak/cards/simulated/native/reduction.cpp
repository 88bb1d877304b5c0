// Reductions of a card: a grid of blocks, some of which share one output when there are few outputs and many inputs. What
// they share lies in memory of the card. The rules are those of torch's kernels for reductions (Reduce.cuh).

#include "reduction.h"

#include <ATen/EmptyTensor.h>
#include <ATen/TensorIterator.h>

#include <algorithm>
#include <bitset>

namespace memleak {
namespace reduction {

constexpr int kWarp = 32;
constexpr int kMostOutputsAtOnce = 4;
constexpr int kFewestValues = 16;  // that a thread should sum at least, and at most
constexpr int kMostValues = 256;

int64_t up(int64_t value, int64_t by) {
  return (value + by - 1) / by;
}

int64_t power_below(int64_t value) {
  int64_t power = 1;
  while (power * 2 <= value) {
    power *= 2;
  }
  return power;
}

// Elements that lie together and begin where a load of several may begin.
int outputs_at_once(const at::TensorIterator& iterator, int64_t address, int64_t bytes) {
  int found = kMostOutputsAtOnce;
  const auto narrow = [&](int64_t number) {
    while (number % found != 0) {
      found /= 2;
    }
  };
  narrow(address / bytes);
  const int kept = iterator.num_reduce_dims();
  narrow(iterator.shape()[static_cast<size_t>(kept)]);
  const auto strides = iterator.strides(iterator.noutputs());
  for (int dim = 0; dim < static_cast<int>(strides.size()); ++dim) {
    if (dim != kept) {
      narrow(strides[static_cast<size_t>(dim)] / bytes);
    }
  }
  return found;
}

void take(at::TensorIterator& iterator, int64_t address, int64_t accumulated_bytes) {
  if (iterator.numel() == 0) {
    return;
  }
  if (!iterator.can_use_32bit_indexing()) {
    for (auto& part : iterator.with_32bit_indexing()) {
      take(part, address, accumulated_bytes);
    }
    return;
  }
  const int input = iterator.ntensors() - 1;
  const int64_t bytes = iterator.element_size(input);
  Reduced reduced;
  reduced.outputs = iterator.num_output_elements();
  reduced.inputs = iterator.numel() / reduced.outputs;
  reduced.dimensions = iterator.ndim();
  reduced.reduced_dimensions = iterator.num_reduce_dims();
  if (reduced.dimensions > 0) {
    reduced.first_stride = iterator.strides(input)[0];
  }
  if (reduced.reduced_dimensions < reduced.dimensions) {
    reduced.kept_stride = iterator.strides(input)[static_cast<size_t>(reduced.reduced_dimensions)];
    reduced.output_vector = outputs_at_once(iterator, address, bytes);
  }
  const Shared shared = shared_by_blocks(reduced, bytes, accumulated_bytes, facts_of(current_device()));
  const c10::DataPtr values = allocate(static_cast<size_t>(shared.values));
  const c10::DataPtr counters = allocate(static_cast<size_t>(shared.counters));
}

}  // namespace reduction

Shared shared_by_blocks(const Reduced& reduced, int64_t input_bytes, int64_t accumulated_bytes, const Facts& card) {
  using namespace reduction;
  const bool along_input = reduced.dimensions == 0 || reduced.reduced_dimensions == reduced.dimensions ||
      reduced.first_stride < reduced.kept_stride;
  int64_t wide = along_input ? reduced.inputs : reduced.outputs;
  const int64_t high = along_input ? reduced.outputs : reduced.inputs;
  const int64_t stride = along_input ? reduced.first_stride : reduced.kept_stride;
  int64_t at_once = 1;
  if (reduced.dimensions > 0 && stride == input_bytes) {
    if (!along_input) {
      at_once = reduced.output_vector;
      wide /= at_once;
    } else if (wide >= 128 && reduced.reduced_dimensions == 1) {
      wide /= 4;  // inputs that a thread loads at once
    }
  }
  const int64_t most_threads = (input_bytes >= 16 ? 256 : 512) / at_once;
  const int64_t wide_power = wide < most_threads ? power_below(wide) : most_threads;
  const int64_t high_power = high < most_threads ? power_below(high) : most_threads;
  int64_t width = std::min<int64_t>(wide_power, kWarp);
  const int64_t height = std::min(high_power, most_threads / width);
  width = std::min(wide_power, most_threads / height);

  int64_t input_step = along_input ? width : 1;
  int64_t output_step = along_input ? 1 : width;
  if (up(reduced.inputs, input_step) < std::min<int64_t>(height * 16, kMostValues)) {
    return {};  // each warp has outputs of its own
  }
  input_step *= height;
  const int64_t grid = up(reduced.outputs / at_once, output_step);
  const int64_t full_grid = card.processors * (card.threads / (width * height));
  const int64_t values = up(reduced.inputs, input_step);
  if (values < kMostValues || grid > full_grid) {
    return {};
  }
  const int64_t blocks =
      std::max(std::min(up(full_grid, grid), up(values, kFewestValues)), up(values, kMostValues));
  if (blocks <= 1) {
    return {};
  }
  const int64_t for_each_output = along_input ? 1 : width * at_once;
  return {
      accumulated_bytes * reduced.outputs * blocks * for_each_output,
      static_cast<int64_t>(sizeof(int)) * grid,
  };
}

void reduce_on_card(
    const at::Tensor& input, const at::Tensor& output, c10::IntArrayRef dims, bool kept, int64_t accumulated_bytes) {
  const int64_t rank = input.dim();
  std::bitset<64> reduced;
  for (const int64_t dim : dims) {
    reduced.set(static_cast<size_t>(dim < 0 ? dim + std::max<int64_t>(rank, 1) : dim));
  }
  if (dims.empty()) {
    reduced.set();
  }
  // The output with the input's rank: reduced dimensions have size 1 and stride 0.
  c10::DimVector sizes, strides;
  int64_t at = 0;
  for (int64_t dim = 0; dim < rank; ++dim) {
    const bool is_reduced = reduced.test(static_cast<size_t>(dim));
    sizes.push_back(is_reduced ? 1 : input.size(dim));
    strides.push_back(is_reduced ? 0 : output.stride(kept ? dim : at));
    at += is_reduced ? 0 : 1;
  }
  // Tensors without memory: the iterator wants to know sizes and strides only.
  at::Tensor from = at::detail::empty_strided_meta(input.sizes(), input.strides(), input.scalar_type());
  at::Tensor to = at::detail::empty_strided_meta(sizes, strides, output.scalar_type());
  at::TensorIterator iterator = at::TensorIterator::reduce_op(to, from);
  const auto address = reinterpret_cast<int64_t>(input.unsafeGetTensorImpl()->data());
  reduction::take(iterator, address, accumulated_bytes);
}

}  // namespace memleak
