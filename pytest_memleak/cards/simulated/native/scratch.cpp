// What kernels of a card take for themselves while they run.
//
// Each function is the rule of one kernel, or of a group that goes about it alike, in the order in which the kernel takes
// its memory; what it took it gives back at the end, the last first. Most rules say what torch's CUDA sources do. Sizes
// inside cuDNN and CUB were measured, on an H200.

#include "scratch.h"

#include "reduction.h"

#include <ATen/Context.h>
#include <ATen/ExpandUtils.h>
#include <ATen/OpMathType.h>
#include <ATen/core/Reduction.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <unordered_map>

namespace memleak {
namespace scratch {

constexpr int64_t kFloatBytes = 4;
constexpr int64_t kIndexBytes = 8;

c10::DataPtr take(int64_t bytes) {
  return allocate(static_cast<size_t>(bytes));
}

int64_t up(int64_t value, int64_t by) {
  return (value + by - 1) / by;
}

int64_t aligned(int64_t value, int64_t by) {
  return up(value, by) * by;
}

int64_t bytes_of(const at::Tensor& tensor) {
  return tensor.numel() * static_cast<int64_t>(tensor.itemsize());
}

int64_t bytes_of(at::ScalarType type) {
  return static_cast<int64_t>(c10::elementSize(type));
}

bool is_half(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
}

// ---- reductions --------------------------------------------------------------------------------------------------

c10::DimVector dims_of(const Running& running) {
  const c10::IValue given = running.argument("dim");
  if (given.isInt()) {
    return {given.toInt()};
  }
  return given.isIntList() ? c10::DimVector(given.toDimVector()) : c10::DimVector();
}

void reduce(const Running& running, const at::Tensor& input, int64_t accumulated_bytes) {
  const c10::IValue kept = running.argument("keepdim");
  reduce_on_card(
      input, running.results[0].toTensor(), dims_of(running), kept.isBool() && kept.toBool(), accumulated_bytes);
}

// Sums are accumulated in a wider type; an input of another type than the result is converted first, unless the kernel
// reads halves and writes floats.
void sum(const Running& running) {
  const at::Tensor& input = running.tensor(0);
  const at::ScalarType type = running.results[0].toTensor().scalar_type();
  const int64_t accumulated = bytes_of(at::toOpMathType(type));
  if (input.scalar_type() == type || (is_half(input) && type == at::kFloat)) {
    reduce(running, input, accumulated);
  } else {
    reduce(running, at::empty_like(input, input.options().dtype(type)), accumulated);
  }
}

void norm(const Running& running) {
  const at::Tensor& input = running.tensor(0);
  reduce(running, input, bytes_of(at::toOpMathType(c10::toRealValueType(input.scalar_type()))));
}

void extreme(const Running& running) {
  reduce(running, running.tensor(0), static_cast<int64_t>(running.tensor(0).itemsize()));
}

void extreme_with_place(const Running& running) {
  reduce(running, running.tensor(0), 2 * kIndexBytes);
}

void both_extremes(const Running& running) {
  reduce(running, running.tensor(0), 2 * static_cast<int64_t>(running.tensor(0).itemsize()));
}

// Mean, squares, and their number twice, as an integer and as a float.
void variance(const Running& running) {
  reduce(running, running.tensor(0), running.tensor(0).scalar_type() == at::kDouble ? 32 : 16);
}

// max and min are two operations: of all elements, and of a dimension with its places.
void max_or_min(const Running& running) {
  if (running.argument("dim").isNone()) {
    extreme(running);
  } else {
    extreme_with_place(running);
  }
}

// ---- norms -------------------------------------------------------------------------------------------------------

// With very many rows and few columns the gradients of weight and bias are summed in two steps.
void norm_backward(const Running& running) {
  const at::Tensor& input = running.tensor(1);
  const int64_t columns = c10::multiply_integers(running.argument("normalized_shape").toIntVector());
  const int64_t rows = columns == 0 ? 0 : input.numel() / columns;
  if (rows <= 64 * 1024 || columns / 32 >= facts_of(current_device()).processors / 2) {
    return;
  }
  const int64_t parts = std::min(up(rows, 32), 32 * 1024 / up(columns, 32));
  std::vector<at::Tensor> partial;
  for (size_t index = 1; index < running.results.size(); ++index) {
    const at::Tensor& gradient = running.results[index].toTensor();
    if (gradient.defined()) {
      partial.push_back(at::empty({parts, columns}, gradient.options()));
    }
  }
  for (const at::Tensor& one : partial) {
    const at::Tensor summed = at::sum(one, at::IntArrayRef{0});
  }
}

// Batch norm's gradients where the channels lie next to each other: torch's kernels take two steps.
bool in_two_steps(const Running& running) {
  const at::Tensor& input = running.tensor(1);
  return input.is_contiguous(at::MemoryFormat::ChannelsLast) ||
      input.is_contiguous(at::MemoryFormat::ChannelsLast3d) ||
      (input.is_contiguous() && input.dim() > 1 && input.stride(1) == 1);
}

// The deviation, unless it was kept, and two sums for each channel.
Kept batch_norm_backward(const Running& running) {
  Kept kept;
  if (!in_two_steps(running)) {
    return kept;
  }
  const int64_t bytes =
      running.tensor(1).size(1) * bytes_of(at::toOpMathType(running.tensor(1).scalar_type()));
  const c10::IValue deviation = running.argument("save_invstd");
  const bool has_deviation =
      deviation.isTensor() && deviation.toTensor().defined() && deviation.toTensor().numel() > 0;
  for (int times = has_deviation ? 2 : 3; times > 0; --times) {
    kept.push_back(take(bytes));
  }
  return kept;
}

// cuDNN wants the gradient to lie as the input does.
Kept cudnn_batch_norm_backward(const Running& running) {
  const at::Tensor &input = running.tensor(0), &gradient = running.tensor(1);
  Kept kept;
  if (!gradient.is_contiguous(input.suggest_memory_format())) {
    kept.push_back(take(bytes_of(gradient)));
  }
  return kept;
}

// The gradient is multiplied with the output first.
void softmax_backward(const Running& running) {
  const c10::DataPtr product = take(bytes_of(running.tensor(0)));
}

// A sum of squares for each piece of each tensor.
Kept foreach_norm(const Running& running) {
  constexpr int64_t kPiece = 65536;
  const auto tensors = running.arguments[0].toTensorVector();
  int64_t pieces = 0;
  for (const at::Tensor& one : tensors) {
    pieces = std::max(pieces, up(one.numel(), kPiece));
  }
  const c10::IValue given = running.argument("dtype");
  const auto type = given.isInt() ? static_cast<at::ScalarType>(given.toInt()) : tensors[0].scalar_type();
  Kept kept;
  kept.push_back(take(static_cast<int64_t>(tensors.size()) * pieces * bytes_of(at::toOpMathType(type))));
  return kept;
}

// ---- attention ---------------------------------------------------------------------------------------------------

void cudnn_attention(const Running& running) {
  if (running.tensor(0).size(-2) > 1) {
    const c10::DataPtr workspace = take(256);
  }
}

// The gradient of the queries as floats, with fewer heads of keys also those of keys and values for each of the queries'
// heads, and a sum for each row.
void cudnn_attention_backward(const Running& running) {
  const at::Tensor& query = running.tensor(1);
  const int64_t rows = query.numel() / query.size(-1);
  const int64_t copies = running.tensor(2).size(1) == query.size(1) ? 1 : 2;
  // The kernel wants the gradient to lie as the output does.
  const at::Tensor& gradient = running.tensor(0);
  const bool alike = gradient.strides() == running.argument("out").toTensor().strides();
  const c10::DataPtr in_order = take(alike ? 0 : bytes_of(gradient));
  const c10::DataPtr workspace = take(copies * kFloatBytes * query.numel() + kFloatBytes * rows + 256);
}

struct Sizes {
  int64_t batch, heads, queries, keys, width, value_width;
};

// Tensors as scaled_dot_product_attention has them: batch, heads, rows, width.
Sizes sizes_of(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  return {query.size(0), query.size(1), query.size(2), key.size(2), query.size(3), value.size(3)};
}

// Wide values of halves are accumulated as floats outside of the registers.
void efficient_attention(const Running& running) {
  const Sizes sizes = sizes_of(running.tensor(0), running.tensor(1), running.tensor(2));
  if (is_half(running.tensor(0)) && sizes.value_width > 128) {
    const c10::DataPtr sums = take(kFloatBytes * sizes.batch * sizes.queries * sizes.heads * sizes.value_width);
  }
}

// The kernel wants the gradient's rows one after another, each with all heads.
Kept gradient_in_order(const Running& running) {
  Kept kept;
  if (running.tensor(0).defined() && !running.tensor(0).transpose(1, 2).is_contiguous()) {
    kept.push_back(take(bytes_of(running.tensor(0))));
  }
  return kept;
}

// For each row the sum of products of the output and its gradient, put together from operations on floats.
c10::DataPtr sums_of_products(const Sizes& sizes, bool halves) {
  const int64_t rows = sizes.batch * sizes.heads * sizes.queries;
  const int64_t bytes = kFloatBytes * rows * sizes.value_width;
  const c10::DataPtr gradient = take(halves ? bytes : 0), output = take(halves ? bytes : 0);
  const c10::DataPtr products = take(bytes);
  c10::DataPtr sums = take(kFloatBytes * rows);
  if (sizes.heads == 1 || sizes.queries == 1) {
    return sums;
  }
  c10::DataPtr in_order = take(kFloatBytes * rows);
  return in_order;
}

void efficient_attention_backward(const Running& running) {
  if (!running.tensor(0).defined()) {
    return;
  }
  const Sizes sizes = sizes_of(running.tensor(1), running.tensor(2), running.tensor(3));
  const int64_t rows = sizes.batch * sizes.heads * sizes.queries;
  const bool halves = is_half(running.tensor(1));
  const int64_t widest = std::max(sizes.width, sizes.value_width);
  const bool in_kernel = halves && facts_of(current_device()).major >= 8;
  c10::DataPtr workspace;  // given back after the sums
  const c10::DataPtr sums = in_kernel ? take(kFloatBytes * rows) : sums_of_products(sizes, halves);
  // The tile of the kernel that is taken: rows of queries, rows of keys, and whether the gradients of keys and values of
  // a tile stay in registers.
  const int64_t high = widest <= 64 ? 64 : 128;
  const int64_t wide = in_kernel && widest > 64 && widest <= 128 ? 128 : 64;
  const bool in_registers = halves && widest <= high;
  const int64_t for_query = up(sizes.queries, high) * up(sizes.width, wide) * (high * wide * kFloatBytes + 16);
  int64_t for_keys = 0;
  if (halves && !in_registers) {
    const int64_t splits =
        std::max<int64_t>(1, std::min(up(sizes.keys, wide), 200 / (sizes.batch * sizes.heads)));
    for_keys =
        splits * wide * (aligned(sizes.width, high) + aligned(sizes.value_width, high)) * kFloatBytes;
  }
  workspace = take(sizes.batch * sizes.heads * aligned(for_query + for_keys, 16));
}

// How many parts of the keys a flash kernel takes side by side when there are too few queries to keep the card busy.
int64_t flash_splits(int64_t blocks, int64_t processors, int64_t key_blocks) {
  if (static_cast<float>(blocks) >= 0.8F * static_cast<float>(processors)) {
    return 1;
  }
  const int64_t most = std::min({int64_t{128}, processors, key_blocks});
  const auto useful = [&](int64_t splits) {
    return splits == 1 || up(key_blocks, splits) != up(key_blocks, splits - 1);
  };
  const auto efficiency = [&](int64_t splits) {
    const float waves = static_cast<float>(blocks * splits) / static_cast<float>(processors);
    return waves / std::ceil(waves);
  };
  float best = 0;
  for (int64_t splits = 1; splits <= most; ++splits) {
    best = useful(splits) ? std::max(best, efficiency(splits)) : best;
  }
  for (int64_t splits = 1; splits <= most; ++splits) {
    if (useful(splits) && efficiency(splits) >= 0.85F * best) {
      return splits;
    }
  }
  return 1;
}

void flash_attention(const Running& running) {
  Sizes sizes = sizes_of(running.tensor(0), running.tensor(1), running.tensor(2));
  const c10::IValue dropout = running.argument("dropout_p");
  if (!dropout.isDouble() || dropout.toDouble() != 0.0) {
    return;
  }
  const int64_t key_heads = running.tensor(1).size(1);
  if (sizes.queries == 1 && sizes.heads > key_heads && sizes.width % 8 == 0) {
    sizes.queries = sizes.heads / key_heads;  // the heads of a group are taken as rows of one
    sizes.heads = key_heads;
  }
  const int64_t key_rows = sizes.width <= 64 ? 256 : (sizes.width <= 128 ? 128 : 64);
  const int64_t blocks = sizes.batch * sizes.heads * up(sizes.queries, 64);
  const int64_t splits =
      flash_splits(blocks, 2 * facts_of(current_device()).processors, up(sizes.keys, key_rows));
  if (splits > 1) {
    const int64_t rows = splits * sizes.batch * sizes.heads * sizes.queries;
    const int64_t width = aligned(sizes.width, sizes.width <= 128 ? 32 : 64);
    const c10::DataPtr sums = take(kFloatBytes * rows);
    const c10::DataPtr parts = take(kFloatBytes * rows * width);
  }
}

void flash_attention_backward(const Running& running) {
  const at::Tensor& query = running.tensor(1);
  const at::Tensor& key = running.tensor(2);
  const Sizes sizes = sizes_of(query, key, running.tensor(3));
  const int64_t rows = sizes.batch * sizes.heads * aligned(sizes.queries, 128);
  const int64_t width = aligned(sizes.width, sizes.width <= 128 ? 32 : 64);
  const c10::DataPtr sums = take(kFloatBytes * rows);
  const c10::DataPtr query_gradient = take(kFloatBytes * rows * width);
  if (key.size(1) != sizes.heads) {
    const int64_t expanded =
        sizes.batch * sizes.keys * sizes.heads * sizes.width * static_cast<int64_t>(key.itemsize());
    const c10::DataPtr keys = take(expanded);
    const c10::DataPtr values = take(expanded);
  }
}

// ---- sorting and counting ----------------------------------------------------------------------------------------

// CUB asks for one block of memory with its pieces at multiples of 256, and for as much as it takes to begin at one.
constexpr int64_t kPieceOfCub = 256;

int64_t of_cub(std::initializer_list<int64_t> pieces) {
  int64_t bytes = kPieceOfCub - 1;
  for (const int64_t piece : pieces) {
    bytes += aligned(piece, kPieceOfCub);
  }
  return bytes;
}

// A counter of each digit for each pass, the counts of each tile, and the other half of each pair of buffers.
int64_t radix_sort(int64_t count, int64_t key_bytes, int64_t value_bytes, int64_t bits) {
  constexpr int64_t kOneTile = 2048;
  constexpr int64_t kDigits = 256;
  if (count <= kOneTile) {
    return 1;
  }
  const int64_t items = key_bytes <= 4 ? 14 : (value_bytes == 0 ? 15 : 12);
  const int64_t passes = up(bits, 8);
  return of_cub(
      {passes * kDigits * kIndexBytes,
       up(count, 384 * items) * kDigits * 4,
       count * key_bytes,
       count * value_bytes,
       passes * 4});
}

// One word for each tile, and for those that a warp looks back at.
int64_t scan(int64_t count, int64_t tile) {
  return of_cub({(up(count, tile) + 32) * 16});
}

constexpr int64_t kScanTile = 3840;
constexpr int64_t kSelectTile = 8448;

int64_t count_all(int64_t count) {
  constexpr int64_t kOneTile = 4096;
  constexpr int64_t kBlocksOfProcessor = 40;
  return count <= kOneTile ? 1 : of_cub({facts_of(current_device()).processors * kBlocksOfProcessor * 4});
}

Kept nonzero_before(const Running& running) {
  Kept kept;
  kept.push_back(take(4));
  const c10::DataPtr counting = take(count_all(running.tensor(0).numel()));
  return kept;
}

void nonzero(const Running& running) {
  const c10::DataPtr selecting = take(scan(running.tensor(0).numel(), kSelectTile));
}

Kept unique_before(const Running& running) {
  const at::Tensor& input = running.tensor(0);
  Kept kept;
  kept.push_back(take(bytes_of(input)));
  const auto bytes = static_cast<int64_t>(input.itemsize());
  const c10::DataPtr sorting = take(radix_sort(input.numel(), bytes, 0, 8 * bytes));
  return kept;
}

void unique(const Running& running) {
  const c10::DataPtr count = take(kIndexBytes);
  const c10::DataPtr selecting = take(scan(running.tensor(0).numel(), kSelectTile));
}

// Unless both are one tensor, all elements are compared.
void equal(const Running& running) {
  if (!running.tensor(0).is_same(running.tensor(1)) && running.tensor(0).sizes() == running.tensor(1).sizes()) {
    const c10::DataPtr same = take(running.tensor(0).numel());
    const c10::DataPtr all = take(1);
  }
}

void cumulate(const Running& running) {
  const at::Tensor& input = running.tensor(0);
  const c10::IValue dim = running.argument("dim");
  const at::ScalarType type = running.results[0].toTensor().scalar_type();
  const c10::DataPtr converted = take(input.scalar_type() == type ? 0 : input.numel() * bytes_of(type));
  if (input.dim() > 0 && dim.isInt() && input.size(dim.toInt()) == input.numel() && input.numel() > 0) {
    const c10::DataPtr scanning = take(scan(input.numel(), kScanTile));
  }
}

// Short rows are sorted in place; few long ones one after another by CUB.
void sort(const Running& running) {
  constexpr int64_t kShort = 4096;
  constexpr int64_t kFew = 128;
  const at::Tensor& input = running.tensor(0);
  const c10::IValue dim = running.argument("dim");
  if (input.dim() == 0 || input.numel() == 0 || !dim.isInt()) {
    return;
  }
  const int64_t length = input.size(dim.toInt());
  const c10::DataPtr places = take(length * kIndexBytes);
  if (length > kShort && input.numel() / length < kFew) {
    const auto bytes = static_cast<int64_t>(input.itemsize());
    const c10::DataPtr sorting = take(radix_sort(length, bytes, kIndexBytes, 8 * bytes));
  }
}

bool in_several_blocks(int64_t rows, int64_t length) {
  struct Limit {
    int64_t rows, length;
  };
  for (const Limit limit : {Limit{20, 20000}, {40, 10000}, {80, 8000}, {199, 5000}, {799, 3000}, {4000, 800}}) {
    if (rows <= limit.rows) {
      return length >= limit.length;
    }
  }
  return length >= 400;
}

// Rows are searched by digits, each in one block or, if they are long and few, in several that count together.
void topk(const Running& running) {
  constexpr int64_t kThreads = 256;
  constexpr int64_t kDigits = 256;
  constexpr int64_t kRegisters = 65536;
  constexpr int64_t kRegistersOfThread = 40;
  const at::Tensor& input = running.tensor(0);
  const c10::IValue dim = running.argument("dim");
  if (input.dim() == 0 || input.numel() == 0 || !dim.isInt()) {
    return;
  }
  const int64_t length = input.size(dim.toInt());
  const int64_t rows = input.numel() / length;
  if (!in_several_blocks(rows, length)) {
    return;
  }
  const int64_t at_once =
      facts_of(current_device()).processors * (kRegisters / (kRegistersOfThread * kThreads)) * kThreads;
  const int64_t items = std::clamp<int64_t>(up(input.numel(), at_once), 4, 64);
  const int64_t blocks = rows * up(length, items * kThreads);
  const c10::DataPtr values = take(rows * static_cast<int64_t>(input.itemsize()));
  const c10::DataPtr wanted = take(2 * rows * 4);
  const c10::DataPtr found = take(2 * rows * std::max<int64_t>(4, static_cast<int64_t>(input.itemsize())));
  const c10::DataPtr counts = take(blocks * kDigits * 2);
  const c10::DataPtr sums = take(rows * kDigits * 4);
  const c10::DataPtr within = take(blocks * 4);
  const c10::DataPtr at_limit = take(blocks * 4);
  for (int twice = 0; twice < 2; ++twice) {
    const int64_t tiles = up(blocks, kScanTile / 2);
    const c10::DataPtr scanning = take(of_cub({(tiles + 32) * 16, tiles * 4}));
  }
}

// Random keys, of so many bits that hardly two are alike, are sorted with the numbers.
void randperm(const Running& running) {
  const at::Tensor& result = running.results[0].toTensor();
  const auto count = static_cast<double>(result.numel());
  if (count == 0) {
    return;
  }
  const auto bits = std::min<int64_t>(
      64, static_cast<int64_t>(std::ceil(std::log2(count - (6 * count * count + 1) / (std::log(0.9) * 12)))));
  const int64_t key_bytes = bits <= 8 ? 1 : (bits <= 16 ? 2 : (bits <= 32 ? 4 : 8));
  {
    const c10::DataPtr seed = take(kIndexBytes);
  }
  const c10::DataPtr numbers = take(bytes_of(result));
  const c10::DataPtr keys = take(result.numel() * key_bytes);
  const c10::DataPtr sorted = take(result.numel() * key_bytes);
  const c10::DataPtr sorting =
      take(radix_sort(result.numel(), key_bytes, static_cast<int64_t>(result.itemsize()), bits));
}

// Checks that read values, and a random number for each weight.
void multinomial(const Running& running) {
  const at::Tensor& weights = running.tensor(0);
  const auto bytes = static_cast<int64_t>(weights.itemsize());
  const c10::IValue replacement = running.argument("replacement");
  if (replacement.isBool() && replacement.toBool()) {
    return;
  }
  const int64_t rows = weights.dim() > 1 ? weights.size(0) : 1;
  c10::DataPtr valid;
  {
    const c10::DataPtr most = take(bytes), finite = take(1), least = take(bytes), positive = take(1);
    valid = take(1);
  }
  c10::DataPtr sums = take(rows * bytes);
  const c10::DataPtr zero = take(rows);
  sums.clear();
  {
    const c10::DataPtr any = take(1);
  }
  const c10::DataPtr numbers = take(bytes_of(weights));
}

// ---- gradients of look-ups ---------------------------------------------------------------------------------------

int64_t bits_of(int64_t largest) {
  int64_t bits = 1;
  while (largest >>= 1) {
    ++bits;
  }
  return bits;
}

int64_t broadcast_elements(const std::vector<at::Tensor>& tensors) {
  std::map<int64_t, int64_t> sizes;  // by the dimension, counted from the last
  int64_t elements = 1;
  for (const at::Tensor& one : tensors) {
    for (int64_t dim = 1; dim <= one.dim(); ++dim) {
      int64_t& size = sizes.emplace(dim, 1).first->second;
      size = one.size(-dim) == 1 ? size : one.size(-dim);
    }
  }
  for (const auto& [dim, size] : sizes) {
    elements *= size;
  }
  return elements;
}

// Values that are added at places are brought into the order of the places first.
void index_put(const Running& running) {
  const c10::IValue adds = running.argument("accumulate");
  if (!adds.isBool() || !adds.toBool()) {
    return;
  }
  const c10::IValue unsafe = running.argument("unsafe");
  const bool checks = !unsafe.isBool() || !unsafe.toBool();
  const at::Tensor& self = running.tensor(0);
  std::vector<at::Tensor> places;
  int64_t slice = 1;  // elements that one place stands for
  const auto given = running.arguments[1].toListRef();
  for (size_t dim = 0; dim < static_cast<size_t>(self.dim()); ++dim) {
    if (dim < given.size() && given[dim].isTensor() && given[dim].toTensor().defined()) {
      places.push_back(given[dim].toTensor());
    } else if (dim >= given.size()) {
      slice *= self.size(static_cast<int64_t>(dim));
    }
  }
  const int64_t bytes = broadcast_elements(places) * kIndexBytes;
  if (bytes == 0) {
    return;
  }
  c10::DataPtr linear;
  for (const at::Tensor& one : places) {
    for (int twice = 0; checks && twice < 2; ++twice) {
      const at::Tensor limit = at::empty({}, one.options());
      reduce_on_card(one, limit, {}, false, static_cast<int64_t>(one.itemsize()));
      const c10::DataPtr beyond = take(1);
    }
    const c10::DataPtr wrapped = take(bytes_of(one));
    c10::DataPtr scaled = take(bytes);
    linear = std::move(scaled);
  }
  const int64_t count = bytes / kIndexBytes;
  const c10::DataPtr sorted = take(bytes), order = take(bytes), numbers = take(bytes);
  const c10::DataPtr sorting =
      take(radix_sort(count, kIndexBytes, kIndexBytes, bits_of(std::max<int64_t>(self.numel() / slice - 1, 0))));
}

// Many look-ups are sorted, and the gradients of rows that were looked up often are summed in parts.
Kept embedding_backward_before(const Running& running) {
  constexpr int64_t kFew = 3072;
  Kept kept;
  const at::Tensor& indices = running.tensor(1);
  const int64_t count = indices.numel();
  if (count <= kFew && !running.argument("scale_grad_by_freq").toBool()) {
    return kept;
  }
  const auto bytes = static_cast<int64_t>(indices.itemsize());
  kept.push_back(take(count * bytes));
  kept.push_back(take(count * bytes));
  const c10::DataPtr numbers = take(count * bytes);
  const c10::DataPtr sorting =
      take(radix_sort(count, bytes, bytes, bits_of(running.argument("num_weights").toInt())));
  return kept;
}

void embedding_backward(const Running& running) {
  constexpr int64_t kFew = 3072;
  constexpr int64_t kRowsOfPart = 10;
  const at::Tensor& gradient = running.tensor(0);
  const at::Tensor& indices = running.tensor(1);
  const int64_t count = indices.numel();
  const bool by_frequency = running.argument("scale_grad_by_freq").toBool();
  if (count <= kFew && !by_frequency) {
    return;
  }
  const auto bytes = static_cast<int64_t>(indices.itemsize());
  const int64_t width = gradient.size(-1);
  const int64_t rows = std::min(count, running.argument("num_weights").toInt());
  const int64_t parts = count / kRowsOfPart + rows;
  const c10::DataPtr begins = take(count * bytes);
  const c10::DataPtr number = take(kIndexBytes);
  {
    const c10::DataPtr selecting = take(scan(count, kSelectTile));
  }
  const c10::DataPtr sizes = take(rows * bytes);
  const c10::DataPtr offsets = take(rows * bytes);
  {
    const c10::DataPtr scanning = take(scan(rows, kScanTile));
  }
  const c10::DataPtr number_of_parts = take(kIndexBytes);
  const c10::DataPtr places = take(parts * bytes);
  const c10::DataPtr sums = take(parts * width * bytes_of(at::toOpMathType(gradient.scalar_type())));
}

// ---- products and convolutions -----------------------------------------------------------------------------------

// cuDNN chooses among many kernels by what it measured. Those for tensor cores want channels last: where tensors lie
// otherwise they are copied, halves with as many channels as such a kernel reads at once. This is what kernels took that
// were recorded; which one is chosen cannot be known, and some take more, to split a sum.
struct Convolved {
  const at::Tensor& input;
  const at::Tensor& weight;
  const at::Tensor& output;
  int64_t groups;

  bool copies() const {
    const Facts& card = facts_of(current_device());
    const bool cores = is_half(input)
        ? card.major >= 7
        : (input.scalar_type() == at::kFloat && card.major >= 8 && at::globalContext().allowTF32CuDNN());
    return cores && groups == 1 && input.dim() == 4 && input.numel() > 0 &&
        !input.is_contiguous(at::MemoryFormat::ChannelsLast);
  }
  int64_t bytes(int64_t channels) const {
    const int64_t of_input = (bytes_of(input) + bytes_of(weight)) / input.size(1);
    return of_input * aligned(input.size(1), channels) + bytes_of(output) + 16;
  }
};

void convolution(const Running& running) {
  const Convolved all{
      running.tensor(0), running.tensor(1), running.results[0].toTensor(), running.argument("groups").toInt()};
  if (all.copies() && all.input.size(1) % 8 == 0) {
    const c10::DataPtr copies = take(all.bytes(1) - (is_half(all.input) ? 0 : bytes_of(all.output)));
  }
}

void convolution_backward(const Running& running, size_t index) {
  const at::Tensor& result = running.results[index].toTensor();
  const Convolved all{running.tensor(1), running.tensor(2), running.tensor(0), running.argument("groups").toInt()};
  if (!result.defined()) {
    return;
  }
  if (index < 2) {
    const c10::DataPtr copies = take(all.copies() ? all.bytes(index == 1 && is_half(all.input) ? 8 : 1) : 0);
    return;
  }
  std::vector<int64_t> summed;
  for (int64_t dim = 0; dim < all.output.dim(); ++dim) {
    if (dim != 1) {
      summed.push_back(dim);
    }
  }
  reduce_on_card(all.output, result, summed, false, bytes_of(at::toOpMathType(result.scalar_type())));
}

// Hopper's kernel: pointers, shapes and strides of each product, and descriptors of each processor's tiles.
void grouped_product(const Running& running) {
  if (facts_of(current_device()).major < 9) {
    return;
  }
  const c10::IValue ends = running.argument("offs");
  const int64_t groups = ends.isTensor() ? ends.toTensor().size(0) : running.tensor(0).size(0);
  const c10::DataPtr pointers = take(60 * groups);
  const c10::DataPtr descriptors = take(512 * facts_of(current_device()).processors);
}

// ---- losses ------------------------------------------------------------------------------------------------------

// One for each element; they are there while they are summed up.
at::DimVector shape_of_losses(const Running& running) {
  return at::infer_size_dimvector(running.tensor(0).sizes(), running.tensor(1).sizes());
}

void sum_up(const Running& running, const at::Tensor& losses) {
  reduce_on_card(
      losses, running.results[0].toTensor(), {}, false, bytes_of(at::toOpMathType(losses.scalar_type())));
}

bool is_summed_up(const Running& running) {
  return running.argument("reduction").toInt() != at::Reduction::None;
}

// The result was made for the losses, before it came to be their sum.
int64_t elements_of_losses(const Running& running) {
  return is_summed_up(running) ? c10::multiply_integers(shape_of_losses(running)) : 0;
}

// In memory of their own, although the result has as much.
void losses_beside_result(const Running& running) {
  if (is_summed_up(running)) {
    sum_up(running, at::empty(shape_of_losses(running), running.tensor(0).options()));
  }
}

// Their sum is written over them.
void losses_in_result(const Running& running) {
  if (is_summed_up(running)) {
    const at::Tensor sum = at::empty({}, running.tensor(0).options());
    sum_up(running, running.tensor(0));
  }
}

Kept losses_before_result(const Running& running) {
  Kept kept;
  if (is_summed_up(running)) {
    kept.push_back(take(elements_of_losses(running) * static_cast<int64_t>(running.tensor(0).itemsize())));
  }
  return kept;
}

void losses_that_are_there(const Running& running) {
  if (is_summed_up(running)) {
    sum_up(running, running.tensor(0).expand(shape_of_losses(running)));
  }
}

// The base travels to the card as a tensor of its own.
Kept power_of_number(const Running& running) {
  Kept kept;
  if (running.arguments[0].isScalar()) {
    kept.push_back(take(8));
  }
  return kept;
}

const std::unordered_map<std::string, Scratch>& rules() {
  static const auto* const all = new std::unordered_map<std::string, Scratch>{
      {"sum", {nullptr, nullptr, sum}},
      {"nansum", {nullptr, nullptr, sum}},
      {"mean", {nullptr, nullptr, sum}},
      {"prod", {nullptr, nullptr, sum}},
      {"linalg_vector_norm", {nullptr, nullptr, norm}},
      {"norm", {nullptr, nullptr, norm}},
      {"amax", {nullptr, nullptr, extreme}},
      {"amin", {nullptr, nullptr, extreme}},
      {"all", {nullptr, nullptr, extreme}},
      {"any", {nullptr, nullptr, extreme}},
      {"max", {nullptr, nullptr, max_or_min}},
      {"min", {nullptr, nullptr, max_or_min}},
      {"argmax", {nullptr, nullptr, extreme_with_place}},
      {"argmin", {nullptr, nullptr, extreme_with_place}},
      {"aminmax", {nullptr, nullptr, both_extremes}},
      {"std", {nullptr, nullptr, variance}},
      {"var", {nullptr, nullptr, variance}},
      {"std_mean", {nullptr, nullptr, variance}},
      {"var_mean", {nullptr, nullptr, variance}},
      {"native_layer_norm_backward", {nullptr, nullptr, norm_backward}},
      {"_fused_rms_norm_backward", {nullptr, nullptr, norm_backward}},
      {"native_batch_norm_backward", {batch_norm_backward, nullptr, nullptr, in_two_steps}},
      {"cudnn_batch_norm_backward", {cudnn_batch_norm_backward, nullptr, nullptr}},
      {"_softmax_backward_data", {nullptr, nullptr, softmax_backward}},
      {"_foreach_norm", {foreach_norm, nullptr, nullptr}},
      {"_scaled_dot_product_cudnn_attention", {nullptr, nullptr, cudnn_attention}},
      {"_scaled_dot_product_cudnn_attention_backward", {nullptr, nullptr, cudnn_attention_backward}},
      {"_scaled_dot_product_efficient_attention", {nullptr, nullptr, efficient_attention}},
      {"_scaled_dot_product_efficient_attention_backward",
       {gradient_in_order, nullptr, efficient_attention_backward}},
      {"_scaled_dot_product_flash_attention", {nullptr, nullptr, flash_attention}},
      {"_scaled_dot_product_flash_attention_backward", {gradient_in_order, nullptr, flash_attention_backward}},
      {"nonzero", {nonzero_before, nullptr, nonzero}},
      {"_unique2", {unique_before, nullptr, unique}},
      {"equal", {nullptr, nullptr, equal}},
      {"cumsum", {nullptr, nullptr, cumulate}},
      {"cumprod", {nullptr, nullptr, cumulate}},
      {"sort", {nullptr, nullptr, sort}},
      {"topk", {nullptr, nullptr, topk}},
      {"randperm", {nullptr, nullptr, randperm}},
      {"multinomial", {nullptr, nullptr, multinomial}},
      {"_index_put_impl_", {nullptr, nullptr, index_put}},
      {"embedding_dense_backward", {embedding_backward_before, nullptr, embedding_backward}},
      {"_grouped_mm", {nullptr, nullptr, grouped_product}},
      {"convolution", {nullptr, nullptr, convolution}},
      {"convolution_backward", {nullptr, convolution_backward, nullptr}},
      {"pow", {power_of_number, nullptr, nullptr}},
      {"mse_loss", {nullptr, nullptr, losses_beside_result, nullptr, elements_of_losses}},
      {"smooth_l1_loss", {nullptr, nullptr, losses_beside_result, nullptr, elements_of_losses}},
      {"huber_loss", {losses_before_result, nullptr, losses_that_are_there}},
      {"binary_cross_entropy", {nullptr, nullptr, losses_in_result, nullptr, elements_of_losses}},
  };
  return *all;
}

}  // namespace scratch

c10::IValue Running::argument(const char* name) const {
  const auto index = schema.argumentIndexWithName(name);
  return index ? arguments[static_cast<size_t>(*index)] : c10::IValue();
}

Scratch scratch_of(const std::string& name) {
  const auto found = scratch::rules().find(name);
  return found == scratch::rules().end() ? Scratch{} : found->second;
}

}  // namespace memleak
