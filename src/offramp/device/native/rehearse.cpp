#include "rehearse.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/copy_ops.h>
#include <ATen/ops/resize_ops.h>
#include <ATen/ops/zero_ops.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "declared.h"
#include "ledger.h"
#include "signature.h"

namespace offramp {
namespace {

using at::Tensor;

// What an operator gives, learned once for each signature.
struct Output {
  enum { kUndefined, kWritten, kNew, kViewOf, kValue } from{kUndefined};
  size_t argument{0};  // kWritten, kViewOf: of the call's tensors, lists taken apart
  c10::ScalarType type{c10::ScalarType::Float};
  std::vector<int64_t> sizes, strides;
  int64_t offset{0};
  size_t bytes{0};
  c10::IValue value;
};

struct Outputs {
  std::vector<Output> all;
  std::vector<int64_t> counts;  // per result: -1 for a tensor, else how many the list has
  size_t bytes{0};              // of new memory
};

struct Cache {
  std::mutex mutex;
  std::unordered_map<uint64_t, std::shared_ptr<const Outputs>> known;
};

Cache& cache() {
  static auto* instance = new Cache;
  return *instance;
}

// In-place operators whose results do not depend on what was there.
bool overwrites(const Operator& op) {
  static const std::unordered_set<std::string> names{
      "aten::zero_",    "aten::fill_",        "aten::random_",       "aten::normal_",
      "aten::uniform_", "aten::exponential_", "aten::geometric_",    "aten::cauchy_",
      "aten::copy_",    "aten::log_normal_",  "aten::_foreach_zero_"};
  return names.count(op.handle.operator_name().name) != 0;
}

// The tensors among a call's arguments, in order, lists taken apart.
struct Given {
  std::vector<Tensor> tensors;
  bool known{true};
  size_t bytes{0};

  Given(const Operator& op, const c10::Stack& stack) {
    const size_t begin = stack.size() - op.writes.size();
    const auto& schema = op.handle.schema().arguments();
    for (size_t i = 0; i < op.writes.size(); ++i) {
      add(stack[begin + i], op.writes[i] && (schema[i].is_out() || overwrites(op)));
    }
  }

  void add(const c10::IValue& value, bool is_only_written) {
    const auto one = [&](const Tensor& tensor) {
      tensors.push_back(tensor);
      if (!tensor.defined()) return;
      if (!is_only_written) known = known && is_known(tensor);
      bytes += tensor.layout() == c10::kStrided ? tensor.storage().nbytes() : 0;
    };
    if (value.isTensor()) {
      one(value.toTensor());
    } else if (value.isTensorList()) {
      for (const Tensor& tensor : value.toTensorVector()) one(tensor);
    } else if (value.isOptionalTensorList()) {
      for (const std::optional<Tensor> tensor : value.toOptionalTensorList()) {
        one(tensor.value_or(Tensor()));
      }
    }
  }
};

Tensor on_meta(const Tensor& tensor) {
  // A number stays one: beside a tensor of any device, it may be of the CPU.
  if (!tensor.defined() || tensor.unsafeGetTensorImpl()->is_wrapped_number()) return tensor;
  TORCH_CHECK_NOT_IMPLEMENTED(
      tensor.layout() == c10::kStrided && !tensor.is_nested(),
      "A rehearsal has no sparse or nested tensors: their sizes depend on values. Run the program "
      "instead (`offramp run`).");
  return at::detail::empty_strided_meta(tensor.sizes(), tensor.strides(), tensor.scalar_type());
}

c10::IValue on_meta(const c10::IValue& value, std::vector<Tensor>& made) {
  const auto one = [&](const Tensor& tensor) {
    made.push_back(on_meta(tensor));
    return made.back();
  };
  if (value.isTensor()) return one(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& tensor : value.toTensorVector()) list.push_back(one(tensor));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const std::optional<Tensor> tensor : value.toOptionalTensorList()) {
      const auto meta = one(tensor.value_or(Tensor()));
      list.push_back(meta.defined() ? std::optional<Tensor>(meta) : std::nullopt);
    }
    return list;
  }
  if (value.isDevice()) return c10::Device(c10::kMeta);
  if (value.isGenerator()) return {};
  return value;
}

Output output_of(const c10::IValue& value, const std::vector<Tensor>& given) {
  Output out;
  if (!value.isTensor()) {
    out.from = Output::kValue;
    out.value = value;
    return out;
  }
  const auto& tensor = value.toTensor();
  if (!tensor.defined()) return out;
  out.from = Output::kNew;
  out.type = tensor.scalar_type();
  out.sizes = tensor.sizes().vec();
  out.strides = tensor.strides().vec();
  out.offset = tensor.storage_offset();
  for (size_t i = 0; i < given.size(); ++i) {
    if (!given[i].defined()) continue;
    if (given[i].is_same(tensor)) {
      out.from = Output::kWritten;
      out.argument = i;
      return out;
    }
    if (given[i].is_alias_of(tensor)) {
      out.from = Output::kViewOf;
      out.argument = i;
    }
  }
  out.bytes = at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.itemsize(),
                                               static_cast<size_t>(tensor.storage_offset()));
  return out;
}

// Learns the results from PyTorch's own shape rules, its kernels for the meta device.
std::shared_ptr<const Outputs> learn(Operator& op, const c10::Stack& stack) {
  if (!op.handle.hasComputedKernelForDispatchKey(c10::DispatchKey::Meta)) {
    const std::string reason = "PyTorch has no rule for the shapes that it gives";
    refuse(op, reason,
           c10::str("Could not rehearse '", op.name, "' on ", chip().name, ": ", reason,
                    ". Run the program instead (`offramp run`)."));
  }
  std::vector<Tensor> given;
  c10::Stack meta;
  for (size_t i = stack.size() - op.writes.size(); i < stack.size(); ++i) {
    meta.push_back(on_meta(stack[i], given));
  }
  op.handle.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::Meta), &meta);
  auto made = std::make_shared<Outputs>();
  for (const auto& value : meta) {
    if (value.isTensorList()) {
      const auto list = value.toTensorVector();
      made->counts.push_back(static_cast<int64_t>(list.size()));
      for (const auto& tensor : list) made->all.push_back(output_of(tensor, given));
    } else {
      made->counts.push_back(-1);
      made->all.push_back(output_of(value, given));
    }
  }
  for (const auto& out : made->all) {
    if (out.from == Output::kNew) made->bytes += out.bytes;
  }
  return made;
}

// In-place operators give back what they were given, in the sizes it has.
std::shared_ptr<const Outputs> in_place(const Operator& op, const Given& given) {
  const auto& name = op.handle.operator_name().name;
  if (name.back() != '_') return nullptr;
  const auto& results = op.handle.schema().returns();
  auto made = std::make_shared<Outputs>();
  if (results.empty()) return made;
  if (results.size() != 1 || !op.writes[0] || given.tensors.empty()) return nullptr;
  if (results[0].alias_info() == nullptr || !results[0].alias_info()->isWrite()) return nullptr;
  if (results[0].type()->kind() != c10::TypeKind::TensorType) return nullptr;
  const auto& self = given.tensors[0];
  Output out;
  out.from = Output::kWritten;
  out.sizes = self.sizes().vec();
  out.strides = self.strides().vec();
  out.offset = self.storage_offset();
  made->counts.push_back(-1);
  made->all.push_back(std::move(out));
  return made;
}

Tensor give(const Output& out, const Operator& op, int index, const Given& given) {
  switch (out.from) {
    case Output::kWritten: {
      const auto& view = given.tensors[out.argument];
      if (view.sizes() != c10::IntArrayRef(out.sizes)) {
        const at::AutoDispatchBelowADInplaceOrView below_autograd;
        at::_ops::resize_::redispatch(c10::DispatchKeySet(c10::DispatchKey::CPU), view,
                                      c10::fromIntArrayRefSlow(out.sizes), std::nullopt);
        view.unsafeGetTensorImpl()->set_sizes_and_strides(out.sizes, out.strides, out.offset);
      }
      return view;
    }
    case Output::kViewOf: {
      const auto& of = given.tensors[out.argument];
      auto made = at::detail::make_tensor<c10::TensorImpl>(
          c10::TensorImpl::VIEW, c10::Storage(of.storage()),
          c10::DispatchKeySet(c10::DispatchKey::CPU), c10::scalarTypeToTypeMeta(out.type));
      const auto itemsize = static_cast<int64_t>(c10::elementSize(out.type));
      const int64_t offset = of.storage_offset() * static_cast<int64_t>(of.itemsize()) / itemsize;
      made.unsafeGetTensorImpl()->set_sizes_and_strides(out.sizes, out.strides,
                                                        offset + out.offset);
      return made;
    }
    case Output::kNew: {
      c10::Storage storage(c10::Storage::use_byte_size_t(), out.bytes,
                           allocate_on(index, out.bytes), allocator(), /*resizable=*/true);
      auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage),
                                                           c10::DispatchKeySet(dense_key()),
                                                           c10::scalarTypeToTypeMeta(out.type));
      made.unsafeGetTensorImpl()->set_sizes_and_strides(out.sizes, out.strides, out.offset);
      return made;
    }
    default:
      return {};
  }
}

// In-place operators that leave one of what they may write as it was, when nothing is amiss.
bool leaves(const Operator& op, size_t argument) {
  return op.name == "aten::_amp_foreach_non_finite_check_and_unscale_" && argument == 1;
}

void forget_written(const Operator& op, const c10::Stack& stack) {
  const size_t begin = stack.size() - op.writes.size();
  for (size_t i = 0; i < op.writes.size(); ++i) {
    if (!op.writes[i] || leaves(op, i)) continue;
    const auto& value = stack[begin + i];
    if (value.isTensor()) {
      set_known(value.toTensor(), false);
    } else if (value.isTensorList()) {
      for (const Tensor& tensor : value.toTensorVector()) set_known(tensor, false);
    }
  }
}

std::shared_ptr<const Outputs> outputs_of(Operator& op, const Given& given, c10::Stack* stack) {
  if (auto known = in_place(op, given)) return known;
  declare_arguments(op, stack);
  const auto signature = sign(op, *stack);
  auto& all = cache();
  if (signature.exact) {
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto found = all.known.find(signature.key);
    if (found != all.known.end()) return found->second;
  }
  auto made = learn(op, *stack);
  if (signature.exact) {
    const std::lock_guard<std::mutex> lock(all.mutex);
    all.known.emplace(signature.key, made);
  }
  return made;
}

}  // namespace

Rehearsal& rehearsal() {
  static Rehearsal instance;
  return instance;
}

bool is_known_at(const void* data) {
  const Block* block = data == nullptr ? nullptr : block_at(data);
  return block == nullptr || block->known;
}

bool is_known(const Tensor& tensor) {
  if (!tensor.defined() || tensor.layout() != c10::kStrided) return true;
  return is_known_at(tensor.storage().data());
}

void set_known(const Tensor& tensor, bool known) {
  if (!tensor.defined() || tensor.layout() != c10::kStrided) return;
  const auto* data = tensor.storage().data();
  if (data == nullptr) return;
  Block* block = block_at(data);
  if (block == nullptr) return;
  // One unknown element makes the whole unknown; it is known again when all of it is written.
  const bool whole =
      static_cast<size_t>(tensor.numel()) * tensor.itemsize() == tensor.storage().nbytes();
  if (!known || whole) block->known = known;
}

void set_known(const std::vector<Tensor>& tensors, bool known) {
  std::unordered_map<const void*, size_t> written;  // bytes of each storage
  for (const auto& tensor : tensors) {
    set_known(tensor, known);
    const auto* data = tensor.storage().data();
    written[data] += static_cast<size_t>(tensor.numel()) * tensor.itemsize();
    Block* block = data == nullptr ? nullptr : block_at(data);
    if (known && block != nullptr && written[data] >= tensor.storage().nbytes()) {
      block->known = true;
    }
  }
}

uint64_t block_serial(const void* data) {
  const Block* block = data == nullptr ? nullptr : block_at(data);
  return block == nullptr ? 0 : block->serial;
}

void move_bytes(void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  if (rehearsing()) {
    Block* target = block_at(to);
    const bool known = is_known_at(from);
    if (target != nullptr) target->known = known;
    if (!known) return;
  }
  std::memcpy(to, from, bytes);
}

bool run_shapes(Operator& op, int index, c10::Stack* stack) {
  const Given given(op, *stack);
  const bool small = given.known && given.bytes <= rehearsal().known_bytes && !op.is_fused;
  if (small && depends_on_values(op)) return false;
  if (!small && declare_results(op, index, stack)) return true;
  const auto outputs = outputs_of(op, given, stack);
  if (small && outputs->bytes <= rehearsal().known_bytes) return false;
  forget_written(op, *stack);
  std::vector<c10::IValue> results;
  size_t next = 0;
  {
    const ChargeScope charge(index, op.name.c_str());
    for (const int64_t count : outputs->counts) {
      if (count < 0) {
        const auto& out = outputs->all[next++];
        results.emplace_back(out.from == Output::kValue ? out.value : give(out, op, index, given));
        continue;
      }
      c10::List<Tensor> list;
      for (int64_t i = 0; i < count; ++i) {
        list.push_back(give(outputs->all[next++], op, index, given));
      }
      results.emplace_back(std::move(list));
    }
  }
  stack->resize(stack->size() - op.writes.size());
  for (auto& result : results) stack->push_back(std::move(result));
  declare_values(op, given.tensors, stack);
  return true;
}

Tensor& rehearse_copy(Tensor& self, const Tensor& source) {
  const bool to_chip = is_chip(self.device());
  const size_t bytes = static_cast<size_t>(source.numel()) * source.itemsize();
  const bool known = is_known(source) && bytes <= moved_bytes(source.scalar_type());
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  if (known) {
    Tensor to = host_view(self);
    at::_ops::copy_::redispatch(c10::DispatchKeySet(c10::DispatchKey::CPU), to, host_view(source),
                                false);
    set_known(self, true);
  } else if (to_chip) {
    at::expand_inplace(self, source, "copy_");  // throws where the shapes do not fit
    set_known(self, false);
  } else {
    count_declared("values copied to the host");
    at::_ops::zero_::redispatch(c10::DispatchKeySet(c10::DispatchKey::CPU), self);
  }
  return self;
}

}  // namespace offramp
