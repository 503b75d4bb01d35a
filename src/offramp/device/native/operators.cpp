// Which operators the chip runs by the CPU's kernels, and what is known of each.
#include "operators.h"

#include <ATen/core/enum_tag.h>
#include <torch/library.h>

#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "arithmetic.h"

namespace offramp {
namespace {

using Names = std::unordered_set<std::string>;

// They move or view data and compute nothing, so a format without arithmetic may pass.
const Names& movers() {
  static const Names names{"aten::clone",
                           "aten::cat",
                           "aten::cat.out",
                           "aten::stack",
                           "aten::zero_",
                           "aten::fill_.Scalar",
                           "aten::index_select",
                           "aten::gather",
                           "aten::equal",
                           "aten::masked_select",
                           "aten::index.Tensor",
                           "aten::_cat",
                           "aten::split_with_sizes_copy",
                           "aten::split_with_sizes_copy.out",
                           "aten::flip",
                           "aten::_chunk_cat",
                           "aten::_chunk_cat.out",
                           "aten::roll",
                           "aten::constant_pad_nd",
                           "aten::_foreach_copy_",
                           "aten::_foreach_zero_",
                           "aten::_foreach_clone",
                           "aten::fill_.Tensor"};
  return names;
}

// They take tensors of the CPU beside the chip's: indices, lengths, scalars kept on the host.
const Names& mixers() {
  static const Names names{"aten::index.Tensor",
                           "aten::index.Tensor_out",
                           "aten::index_put_",
                           "aten::index_put",
                           "aten::_index_put_impl_",
                           "aten::_unsafe_index.Tensor",
                           "aten::_unsafe_index_put",
                           "aten::_pack_padded_sequence",
                           "aten::_pack_padded_sequence_backward",
                           "aten::_ctc_loss.Tensor",
                           "aten::_ctc_loss_backward.Tensor",
                           "aten::copy_",
                           "aten::_foreach_copy_",
                           "aten::_fused_adam_",
                           "aten::_fused_adam_.tensor_lr",
                           "aten::_fused_adamw_",
                           "aten::_fused_adamw_.tensor_lr",
                           "aten::_fused_adagrad_",
                           "aten::_fused_adagrad_.tensor_lr",
                           "aten::_fused_sgd_.tensor_lr",
                           "aten::is_set_to",
                           "aten::_nested_view_from_buffer",
                           "aten::_nested_view_from_buffer_copy",
                           "aten::_nested_from_padded",
                           "aten::_segment_reduce_backward",
                           "aten::segment_reduce"};
  return names;
}

// Results that describe a tensor and stay on the CPU, one bit each.
uint32_t host_results(const std::string& name) {
  static const std::unordered_map<std::string, uint32_t> results{
      {"aten::_pack_padded_sequence", 0b10},
      {"aten::_nested_tensor_size", 1},
      {"aten::_nested_tensor_strides", 1},
      {"aten::_nested_tensor_storage_offsets", 1}};
  const auto found = results.find(name);
  return found == results.end() ? 0 : found->second;
}

// The CPU has no kernel for float16, CUDA has one that computes in float32; true where that holds
// for bfloat16 too.
const std::unordered_map<std::string, bool>& widened() {
  static const std::unordered_map<std::string, bool> names{
      {"aten::_fft_c2c", false},
      {"aten::_fft_c2r", false},
      {"aten::_fft_r2c", false},
      {"aten::polygamma", false},
      {"aten::round.decimals", false},
      {"aten::_upsample_bilinear2d_aa", true},
      {"aten::_upsample_bilinear2d_aa_backward", true},
      {"aten::avg_pool3d", true},
      {"aten::avg_pool3d_backward", true},
      {"aten::multi_margin_loss", true},
      {"aten::multi_margin_loss_backward", true},
      {"aten::multilabel_margin_loss_backward", true},
      {"aten::multilabel_margin_loss_forward", true}};
  return names;
}

// Written by hand in ops.cpp, or composed of others on purpose.
const Names& own() {
  static const Names names{"aten::copy_",
                           "aten::_softmax",
                           "aten::_log_softmax",
                           "aten::_softmax_backward_data",
                           "aten::_log_softmax_backward_data",
                           "aten::_to_copy",
                           "aten::detach",
                           "aten::alias",
                           "aten::lift",
                           "aten::lift_fresh",
                           "aten::_lazy_clone",
                           "aten::is_pinned",
                           "aten::_pin_memory",
                           "aten::pin_memory",
                           "aten::record_stream",
                           "aten::is_set_to",
                           "aten::resize_",
                           "aten::set_.source_Storage",
                           "aten::set_.source_Storage_storage_offset",
                           "aten::set_.source_Tensor",
                           "aten::set_",
                           "aten::empty.memory_format",
                           "aten::empty_strided",
                           "aten::as_strided",
                           "aten::view",
                           "aten::_reshape_alias",
                           "aten::unfold",
                           "aten::_local_scalar_dense",
                           "aten::set_data",
                           "aten::resize_as_",
                           "aten::data",
                           "aten::_fw_primal",
                           "aten::_make_dual",
                           "aten::rename_",
                           "aten::_efficientzerotensor",
                           "aten::_has_same_storage_numel",
                           "aten::_copy_from",
                           "aten::_copy_from_and_resize",
                           "aten::_nested_view_from_buffer",
                           "aten::requires_grad_",
                           "aten::_nested_view_from_jagged"};
  return names;
}

bool returns_view(const c10::FunctionSchema& schema) {
  for (const auto& result : schema.returns()) {
    if (result.alias_info() != nullptr && !result.alias_info()->isWrite()) return true;
  }
  return false;
}

bool takes_device(const c10::FunctionSchema& schema) {
  for (const auto& argument : schema.arguments()) {
    const auto& type = argument.type();
    if (type->kind() == c10::TypeKind::DeviceObjType) return true;
    if (type->str() == "Device?") return true;
  }
  return false;
}

struct Registry {
  std::mutex mutex;
  std::unordered_map<std::string, std::unique_ptr<Operator>> operators;
  std::unordered_map<std::string, std::string> missing;
};

Registry& registry() {
  static auto* instance = new Registry;  // kernels outlive static destruction
  return *instance;
}

struct HostKernel final : c10::OperatorKernel {
  HostKernel(Operator& op, c10::DispatchKey host_key) : op(op), host_key(host_key) {}
  void operator()(const c10::OperatorHandle&, c10::DispatchKeySet, c10::Stack* stack) {
    run_on_host(op, host_key, stack);
  }
  Operator& op;
  c10::DispatchKey host_key;
};

struct Fallback final : c10::OperatorKernel {
  explicit Fallback(c10::DispatchKey host_key) : host_key(host_key) {}
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, c10::Stack* stack) {
    run_unregistered(op, host_key, stack);
  }
  c10::DispatchKey host_key;
};

bool wanted(const c10::OperatorHandle& handle, c10::DispatchKey host_key) {
  const auto& schema = handle.schema();
  const bool has_kernel = handle.hasKernelForDispatchKey(host_key);
  if (host_key != c10::DispatchKey::CPU) return has_kernel;
  if (own().count(c10::toString(handle.operator_name())) != 0 || returns_view(schema)) return false;
  if (has_kernel) return true;
  using Key = c10::DispatchKey;
  return handle.hasKernelForDispatchKey(Key::CompositeExplicitAutograd) && !takes_device(schema);
}

}  // namespace

Operator::Operator(const c10::OperatorHandle& handle)
    : handle(handle), name(c10::toString(handle.operator_name())) {
  const auto& arguments = handle.schema().arguments();
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto* alias = arguments[i].alias_info();
    writes.push_back(alias != nullptr && alias->isWrite());
    const auto type = arguments[i].type()->str();
    if (type == "Generator?" || type == "Generator") generator = static_cast<int>(i);
  }
  draws_unasked = generator < 0 && handle.hasTag(at::Tag::nondeterministic_seeded);
  moves_only = movers().count(name) != 0;
  mixes_devices = mixers().count(name) != 0;
  copies = name == "aten::copy_" || name == "aten::_foreach_copy_";
  const auto widening = widened().find(name);
  widens = widening != widened().end();
  widens_bfloat16 = widens && widening->second;
  widens_integers = this->name == "aten::histc";
  is_fused = name.rfind("offramp::", 0) == 0;
  asks_gradient = name == "aten::_sparse_mm_reduce_impl";
  work = work_of(handle, name);
  host_results = offramp::host_results(name);
}

Operator& operator_for(const c10::OperatorHandle& handle) {
  auto& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  auto& slot = all.operators[c10::toString(handle.operator_name())];
  if (!slot) {
    slot = std::make_unique<Operator>(handle);
    const auto packet = handle.operator_name().name;
    for (const auto& key : {slot->name, packet}) {
      const auto found = all.missing.find(key);
      if (found != all.missing.end()) slot->missing = found->second;
    }
  }
  return *slot;
}

Operator& operator_named(const char* name, const char* overload) {
  return operator_for(c10::Dispatcher::singleton().findSchemaOrThrow(name, overload));
}

std::vector<Operator*> operators_called() {
  auto& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  std::vector<Operator*> called;
  for (auto& [name, op] : all.operators) {
    if (op->calls.load() > 0) called.push_back(op.get());
  }
  return called;
}

std::vector<Refusal> refusals() {
  auto& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  std::vector<Refusal> found;
  for (auto& [name, op] : all.operators) {
    if (op->refusals.load() > 0) found.push_back({name, op->refused_because, op->refusals});
  }
  return found;
}

void refuse(Operator& op, const std::string& reason, const std::string& message) {
  {
    const std::lock_guard<std::mutex> lock(registry().mutex);
    op.refusals += 1;
    op.refused_because = reason;
  }
  TORCH_CHECK_NOT_IMPLEMENTED(false, message);
  __builtin_unreachable();
}

void require(Operator& op) {
  if (op.missing.empty()) return;
  refuse(op, op.missing, c10::str(op.name, " does not exist on ", chip().name, ": ", op.missing));
}

void declare_missing(const std::string& op_name, const std::string& reason) {
  auto& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.missing[op_name] = reason;
}

void register_for_aten(
    c10::DispatchKey key, const std::function<bool(const c10::OperatorHandle&)>& wanted,
    const std::function<torch::CppFunction(const c10::OperatorHandle&)>& kernel) {
  static std::vector<std::unique_ptr<torch::Library>> kept;
  auto& library = *kept.emplace_back(
      std::make_unique<torch::Library>(torch::Library::IMPL, "aten", key, __FILE__, __LINE__));
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (name.getNamespace() != std::optional<std::string_view>("aten")) continue;
    const auto op = dispatcher.findSchema(name);
    if (op && wanted(*op)) library.impl(c10::toString(name).substr(6).c_str(), kernel(*op));
  }
}

void register_boxed(c10::DispatchKey key, c10::DispatchKey host_key) {
  register_for_aten(
      key, [&](const c10::OperatorHandle& op) { return wanted(op, host_key); },
      [&](const c10::OperatorHandle& op) {
        return torch::CppFunction::makeFromBoxedFunctor(
            std::make_unique<HostKernel>(operator_for(op), host_key));
      });
  static std::vector<std::unique_ptr<torch::Library>> libraries;
  auto& rest = *libraries.emplace_back(
      std::make_unique<torch::Library>(torch::Library::IMPL, "_", key, __FILE__, __LINE__));
  rest.fallback(torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Fallback>(host_key)));
}

}  // namespace offramp
