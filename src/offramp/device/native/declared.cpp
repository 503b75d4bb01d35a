#include "declared.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/count_nonzero.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "ledger.h"
#include "rehearse.h"

namespace offramp {
namespace {

using at::Tensor;
using Names = std::unordered_set<std::string>;

struct Answers {
  std::mutex mutex;
  std::map<std::string, int64_t> counts;
};

Answers& answers() {
  static auto* instance = new Answers;
  return *instance;
}

int64_t kept_of(int64_t count) {
  return static_cast<int64_t>(std::llround(rehearsal().kept * static_cast<double>(count)));
}

// How many elements a mask (a view for the CPU) keeps: counted where its values are known.
int64_t kept_by(const Tensor& mask) {
  if (is_known(mask)) return at::count_nonzero(mask).item<int64_t>();
  count_declared("elements that a mask keeps");
  return kept_of(mask.numel());
}

Tensor make(int index, c10::IntArrayRef sizes, c10::ScalarType type, const Operator& op) {
  const ChargeScope charge(index, op.name.c_str());
  int64_t count = 1;
  for (const int64_t size : sizes) count *= size;
  const size_t bytes = static_cast<size_t>(count) * c10::elementSize(type);
  c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, allocate_on(index, bytes),
                       allocator(), /*resizable=*/true);
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(dense_key()), c10::scalarTypeToTypeMeta(type));
  made.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return made;
}

bool is_small(const Tensor& tensor) {
  return static_cast<size_t>(tensor.numel()) * tensor.itemsize() <= rehearsal().known_bytes;
}

// Writes whole numbers into a contiguous tensor of int64 or a floating format.
template <class Value>
void fill(const Tensor& tensor, const Value& value) {
  if (!tensor.defined() || !is_small(tensor) || !tensor.is_contiguous()) return;
  const int64_t count = tensor.numel();
  if (tensor.scalar_type() == at::kLong) {
    auto* data = static_cast<int64_t*>(tensor.data_ptr());
    for (int64_t i = 0; i < count; ++i) data[i] = value(i);
  } else if (tensor.scalar_type() == at::kFloat) {
    auto* data = static_cast<float*>(tensor.data_ptr());
    for (int64_t i = 0; i < count; ++i) data[i] = static_cast<float>(value(i));
  } else {
    return;
  }
  set_known(tensor, true);
}

// Deals `total` out over `bins` as evenly as whole numbers allow.
void fill_balanced(const Tensor& tensor, int64_t total) {
  const int64_t bins = std::max<int64_t>(tensor.numel(), 1);
  fill(tensor, [&](int64_t i) { return total / bins + (i < total % bins ? 1 : 0); });
}

// A product for each group of rows. PyTorch's rule for the shapes has bfloat16 only, of which the
// fast kernel is; the other formats go through plain products.
bool grouped_product(Operator& op, int index, c10::Stack* stack) {
  const size_t begin = stack->size() - op.writes.size();
  const Tensor a = (*stack)[begin].toTensor(), b = (*stack)[begin + 1].toTensor();
  const auto& offsets = (*stack)[begin + 2];
  if (a.scalar_type() == at::kBFloat16) return false;
  std::vector<int64_t> sizes{a.size(-2), b.size(-1)};
  if (a.dim() == 3 && b.dim() == 3) sizes.insert(sizes.begin(), a.size(0));
  if (a.dim() == 2 && b.dim() == 2) sizes.insert(sizes.begin(), offsets.toTensor().size(0));
  const auto& type = (*stack)[begin + 4];
  auto made = make(index, sizes, type.isNone() ? a.scalar_type() : type.toScalarType(), op);
  stack->resize(begin);
  stack->emplace_back(std::move(made));
  return true;
}

const std::string& base(const Operator& op) { return op.handle.operator_name().name; }

// Indices of the `k` chosen of `of`, a row after another: over many rows each is chosen equally.
void fill_choices(const Tensor& indices, int64_t of) {
  fill(indices, [of](int64_t i) { return i % of; });
}

}  // namespace

void count_declared(const std::string& what) {
  auto& all = answers();
  const std::lock_guard<std::mutex> lock(all.mutex);
  ++all.counts[what];
}

std::map<std::string, int64_t> declared_answers() {
  auto& all = answers();
  const std::lock_guard<std::mutex> lock(all.mutex);
  return all.counts;
}

bool depends_on_values(const Operator& op) {
  static const Names names{"aten::nonzero",
                           "aten::masked_select",
                           "aten::_unique",
                           "aten::_unique2",
                           "aten::unique_dim",
                           "aten::unique_consecutive",
                           "aten::bincount",
                           "aten::_grouped_mm",
                           "aten::repeat_interleave",
                           "aten::index",
                           "aten::equal",
                           "aten::allclose",
                           "aten::unique_dim_consecutive"};
  return names.count(base(op)) != 0;
}

void declare_arguments(const Operator& op, c10::Stack* stack) {
  const auto& name = base(op);
  if (name != "aten::index" && name != "aten::_unsafe_index" && name != "aten::index_put") return;
  auto& value = (*stack)[stack->size() - op.writes.size() + 1];
  if (!value.isOptionalTensorList()) return;
  const auto given = value.toOptionalTensorList();
  c10::List<std::optional<Tensor>> indices;
  bool changed = false;
  for (const std::optional<Tensor> index : given) {
    const bool mask = index && index->defined() &&
                      (index->scalar_type() == at::kBool || index->scalar_type() == at::kByte);
    if (!mask) {
      indices.push_back(index);
      continue;
    }
    changed = true;
    const Tensor chosen = at::detail::empty_strided_meta({kept_by(*index)}, {1}, at::kLong);
    for (int64_t d = 0; d < std::max<int64_t>(index->dim(), 1); ++d) indices.push_back(chosen);
  }
  if (changed) value = indices;
}

bool declare_results(Operator& op, int index, c10::Stack* stack) {
  const auto& name = base(op);
  const size_t begin = stack->size() - op.writes.size();
  const auto finish = [&](std::vector<Tensor> results, const char* what) {
    count_declared(what);
    stack->resize(begin);
    for (auto& result : results) stack->emplace_back(std::move(result));
    return true;
  };
  if (op.name == "aten::equal" || op.name == "aten::allclose") {
    count_declared("whether tensors are equal");
    stack->resize(begin);
    stack->emplace_back(true);
    return true;
  }
  if (op.name == "aten::_grouped_mm") return grouped_product(op, index, stack);
  const auto& overload = op.handle.operator_name().overload_name;
  if (!overload.empty() && op.name != "aten::repeat_interleave.Tensor") return false;
  if (!(*stack)[begin].isTensor()) return false;
  const Tensor self = (*stack)[begin].toTensor();
  if (name == "aten::nonzero") {
    return finish({make(index, {kept_of(self.numel()), self.dim()}, at::kLong, op)},
                  "elements that a mask keeps");
  }
  if (name == "aten::masked_select") {
    const auto& mask = (*stack)[begin + 1].toTensor();
    const auto sizes = at::infer_size(self.sizes(), mask.sizes());
    const int64_t kept = kept_by(mask.expand(sizes));
    stack->resize(begin);
    stack->emplace_back(make(index, {kept}, self.scalar_type(), op));
    return true;
  }
  if (name == "aten::_unique" || name == "aten::_unique2" || name == "aten::unique_consecutive") {
    std::vector<Tensor> results{make(index, {self.numel()}, self.scalar_type(), op),
                                make(index, self.sizes(), at::kLong, op)};
    if (name != "aten::_unique") results.push_back(make(index, {self.numel()}, at::kLong, op));
    return finish(std::move(results), "distinct values");
  }
  if (name == "aten::bincount") {
    const int64_t bins = std::max<int64_t>((*stack)[begin + 2].toInt(), 1);
    const auto& weights = (*stack)[begin + 1];
    const bool weighted = weights.isTensor() && weights.toTensor().defined();
    auto counts = make(index, {bins}, weighted ? at::kDouble : at::kLong, op);
    if (!weighted) fill_balanced(counts, self.numel());
    return finish({counts}, "how often each value occurs");
  }
  if (name == "aten::repeat_interleave") {
    const auto& given = (*stack)[begin + 1];
    const int64_t count = given.isInt() ? given.toInt() : self.numel();
    return finish({make(index, {count}, at::kLong, op)}, "how often to repeat");
  }
  return false;
}

void declare_values(const Operator& op, const std::vector<Tensor>& given, c10::Stack* stack) {
  const auto& name = base(op);
  const size_t results = op.handle.schema().returns().size();
  const auto result = [&](size_t i) { return (*stack)[stack->size() - results + i].toTensor(); };
  if (given.empty() || !given[0].defined() || results == 0) return;
  if (name == "aten::topk" && results == 2) {
    const int64_t width = given[0].dim() == 0 ? 1 : given[0].size(-1);
    fill_choices(result(1), std::max<int64_t>(width, 1));
    count_declared("which are largest (as even as can be)");
  } else if ((name == "aten::sort") && results == 2) {
    const int64_t width = given[0].dim() == 0 ? 1 : given[0].size(-1);
    fill_choices(result(1), std::max<int64_t>(width, 1));
    count_declared("the order of values (as they came)");
  } else if (name == "aten::argmax" || name == "aten::argmin" || name == "aten::multinomial") {
    fill(result(0), [](int64_t) { return 0; });
    count_declared("which one is chosen (the first)");
  } else if (name == "aten::histc") {
    fill_balanced(result(0), given[0].numel());
    count_declared("how often each value occurs");
  }
}

c10::Scalar declared_value(const Tensor& self) {
  count_declared("values read by the host");
  const Block* block = block_at(self.storage().data());
  const std::string_view origin = block == nullptr ? "" : block->origin;
  if (self.scalar_type() == at::kBool) {
    static const Names wrong{"aten::any",        "aten::isnan",      "aten::isinf",
                             "aten::logical_or", "aten::bitwise_or", "aten::ne",
                             "aten::isneginf",   "aten::isposinf"};
    const std::string maker(origin.substr(0, origin.find('.')));
    return wrong.count(maker) == 0;
  }
  if (c10::isFloatingType(self.scalar_type())) return 1.0;
  if (c10::isComplexType(self.scalar_type())) return c10::complex<double>(1.0, 0.0);
  return static_cast<int64_t>(1);
}

}  // namespace offramp
