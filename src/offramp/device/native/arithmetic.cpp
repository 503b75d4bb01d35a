// Which settings of the chip's arithmetic meet an operator, and how often they did.
#include "arithmetic.h"

#include <ATen/Context.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/enum_tag.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <unordered_set>

namespace offramp {
namespace {

using at::Tensor;

struct Counters {
  std::mutex mutex;
  std::map<std::tuple<std::string, std::string, bool>, int64_t> counts;
};

Counters& counters() {
  static auto* instance = new Counters;
  return *instance;
}

bool is_floating(const Tensor& tensor) {
  if (!tensor.defined() || tensor.layout() != at::kStrided) return false;
  const auto type = tensor.scalar_type();
  return type == at::kFloat || type == at::kHalf || type == at::kBFloat16;
}

bool is_narrow(const Tensor& tensor) {
  return is_floating(tensor) && tensor.scalar_type() != at::kFloat;
}

// Replaces every tensor among the arguments by what `visit` makes of it; `visit` is told whether
// the operator writes it.
template <class Visit>
void each_argument(const Operator& op, c10::Stack* stack, const Visit& visit) {
  const size_t begin = stack->size() - op.writes.size();
  for (size_t i = 0; i < op.writes.size(); ++i) {
    c10::IValue& value = (*stack)[begin + i];
    if (value.isTensor()) {
      value = visit(value.toTensor(), op.writes[i]);
    } else if (value.isTensorList()) {
      auto tensors = value.toTensorVector();
      for (auto& tensor : tensors) tensor = visit(tensor, op.writes[i]);
      value = c10::List<Tensor>(std::move(tensors));
    }
  }
}

template <class Visit>
void each_result(const Operator& op, c10::Stack* stack, const Visit& visit) {
  for (size_t i = stack->size() - op.handle.schema().returns().size(); i < stack->size(); ++i) {
    c10::IValue& value = (*stack)[i];
    if (value.isTensor()) {
      value = visit(value.toTensor());
    } else if (value.isTensorList()) {
      auto tensors = value.toTensorVector();
      for (auto& tensor : tensors) tensor = visit(tensor);
      value = c10::List<Tensor>(std::move(tensors));
    }
  }
}

// The 16-bit format that the results of `op` are rounded to; none where they are not, or where the
// format of the results cannot be told from the arguments.
std::optional<at::ScalarType> rounds_to(const Operator& op, c10::Stack* stack) {
  std::optional<at::ScalarType> narrow;
  bool mixed = false, writes = false;
  each_argument(op, stack, [&](const Tensor& tensor, bool written) {
    if (!tensor.defined() || !tensor.is_floating_point()) return tensor;
    writes |= written && is_narrow(tensor);
    if (!is_narrow(tensor)) {
      mixed |= tensor.dim() > 0;
    } else if (!narrow) {
      narrow = tensor.scalar_type();
    } else {
      mixed |= *narrow != tensor.scalar_type();
    }
    return tensor;
  });
  if (!narrow || (mixed && !writes)) return std::nullopt;
  const size_t begin = stack->size() - op.writes.size();
  const auto& arguments = op.handle.schema().arguments();
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto& name = arguments[i].name();
    if (name == "input_dtype") return std::nullopt;
    if (name == "dtype" && !(*stack)[begin + i].isNone()) return std::nullopt;
  }
  return narrow;
}

// Runs the CPU's kernel in float32 on 16-bit arguments, and rounds what it wrote and gave.
void run_rounded(Operator& op, int index, at::ScalarType type, c10::Stack* stack) {
  std::vector<std::pair<Tensor, Tensor>> written;  // the argument, its float32 stand-in
  std::unordered_map<const void*, Tensor> known;
  {
    const ChargeScope host(-1, "");
    each_argument(op, stack, [&](const Tensor& tensor, bool writes) {
      if (!is_narrow(tensor)) return tensor;
      auto& wide = known[tensor.unsafeGetTensorImpl()];
      if (!wide.defined()) {
        wide = tensor.to(at::kFloat);
        if (writes) written.emplace_back(tensor, wide);
      }
      return wide;
    });
    op.handle.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
    for (const auto& [tensor, wide] : written) {
      if (tensor.sizes() != wide.sizes()) tensor.resize_(wide.sizes());
      round_into(tensor, wide);
    }
  }
  each_result(op, stack, [&](const Tensor& tensor) {
    for (const auto& [argument, wide] : written) {
      if (wide.is_same(tensor)) return argument;
    }
    if (!tensor.defined() || tensor.scalar_type() != at::kFloat) return tensor;
    return finish(op, index, tensor, type, Tensor());
  });
}

// Element-wise operators, sums and optimizers' steps: the CPU's kernel, with flushed or rounded
// numbers around it.
bool compute_around(Operator& op, int index, c10::Stack* stack) {
  const auto& chosen = arithmetic();
  const bool rounds = op.work == Work::kElements || op.work == Work::kExponential;
  const auto type = rounds && chosen.stochastic ? rounds_to(op, stack) : std::nullopt;
  if (!chosen.flush_to_zero && !type) return false;
  std::vector<Tensor> written;
  if (chosen.flush_to_zero) {
    const ChargeScope host(-1, "");
    each_argument(op, stack, [&](const Tensor& tensor, bool writes) {
      if (!is_floating(tensor)) return tensor;
      if (!writes) return flushed(tensor);
      flush_(tensor);
      written.push_back(tensor);
      return tensor;
    });
    met("flush_to_zero", op);
  }
  if (type) {
    met("rounding", op);
    run_rounded(op, index, *type, stack);
  } else {
    op.handle.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }
  if (!chosen.flush_to_zero) return true;
  for (const auto& tensor : written) flush_(tensor);
  each_result(op, stack, [](const Tensor& tensor) {
    if (is_floating(tensor)) flush_(tensor);
    return tensor;
  });
  return true;
}

// The CPU's convolution on rounded inputs: its products are then exact in float32.
bool compute_convolution(Operator& op, int index, c10::Stack* stack) {
  const auto& chosen = arithmetic();
  if (chosen.sums()) met(chosen.split_k > 0 ? "split_k" : "accumulate", op, false);
  if (chosen.stochastic) met("rounding", op, false);
  const auto* format = reduced_now(chosen.convolution, true);
  if (format != nullptr) {
    const bool whole = format->products == 1;
    bool float32 = false;
    const size_t begin = stack->size() - op.writes.size();
    const size_t inputs = op.name == "aten::convolution" ? 2 : 3;
    const ChargeScope host(-1, "");
    for (size_t i = begin; i < begin + inputs; ++i) {
      const auto& tensor = (*stack)[i].toTensor();
      if (!tensor.defined() || tensor.scalar_type() != at::kFloat) continue;
      float32 = true;
      if (whole) (*stack)[i] = rounded_to(tensor, format->bits);
    }
    if (float32) met("convolution.float32", op, whole);
  }
  return compute_around(op, index, stack);
}

}  // namespace

Arithmetic& arithmetic() {
  static Arithmetic instance;
  return instance;
}

Work work_of(const c10::OperatorHandle& handle, const std::string& name) {
  static const std::unordered_map<std::string, Work> named{
      {"mm", Work::kProduct},
      {"addmm", Work::kProduct},
      {"addmm_", Work::kProduct},
      {"bmm", Work::kProduct},
      {"baddbmm", Work::kProduct},
      {"baddbmm_", Work::kProduct},
      {"addbmm", Work::kProduct},
      {"addbmm_", Work::kProduct},
      {"_addmm_activation", Work::kProduct},
      {"_scaled_mm", Work::kProduct},
      {"_grouped_mm", Work::kProduct},
      {"convolution", Work::kConvolution},
      {"convolution_backward", Work::kConvolution},
      {"_scaled_dot_product_flash_attention_for_cpu", Work::kAttention},
      {"_scaled_dot_product_flash_attention_for_cpu_backward", Work::kAttention},
      {"exp", Work::kExponential},
      {"exp_", Work::kExponential},
      {"exp2", Work::kExponential},
      {"exp2_", Work::kExponential},
      {"sigmoid", Work::kExponential},
      {"sigmoid_", Work::kExponential},
      {"silu", Work::kExponential},
      {"silu_", Work::kExponential},
      {"silu_backward", Work::kExponential},
      {"tanh", Work::kExponential},
      {"tanh_", Work::kExponential},
      {"gelu", Work::kExponential},
      {"gelu_", Work::kExponential},
      {"gelu_backward", Work::kExponential},
      {"softplus", Work::kExponential},
      {"softplus_backward", Work::kExponential},
      {"logsumexp", Work::kExponential},
      {"_softmax", Work::kExponential},
      {"_log_softmax", Work::kExponential},
      {"_log_softmax_backward_data", Work::kExponential}};
  static const std::unordered_set<std::string> elements{
      "sum",           "mean",        "_softmax_backward_data", "_fused_adam_",
      "_fused_adamw_", "_fused_sgd_", "_fused_adagrad_"};
  if (name.rfind("aten::", 0) != 0) return Work::kOther;
  const auto base = handle.operator_name().name.substr(6);
  const auto found = named.find(base);
  if (found != named.end()) return found->second;
  const bool moves = base == "_foreach_copy_" || base == "_foreach_zero_" || base == "copy_";
  const bool computes = handle.hasTag(at::Tag::pointwise) || elements.count(base) != 0 ||
                        base.rfind("_foreach_", 0) == 0;
  return computes && !moves ? Work::kElements : Work::kOther;
}

const Reduced* reduced_now(const Reduced& format, bool convolution) {
  if (format.when == When::kNever || format.bits >= kMantissa) return nullptr;
  if (!format.variable.empty()) {
    const char* value = std::getenv(format.variable.c_str());
    if (value != nullptr && format.off == value) return nullptr;
  }
  if (format.when == When::kAlways) return &format;
  const auto op = convolution ? at::Float32Op::CONV : at::Float32Op::MATMUL;
  const auto allowed = at::globalContext().float32Precision(at::Float32Backend::CUDA, op);
  return allowed == at::Float32Precision::TF32 ? &format : nullptr;
}

bool compute_as_chip(Operator& op, int index, c10::Stack* stack) {
  if (op.work == Work::kOther || op.moves_only) return false;
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  switch (op.work) {
    case Work::kProduct:
      return compute_product(op, index, stack) || compute_around(op, index, stack);
    case Work::kAttention:
      return compute_attention(op, index, stack) || compute_around(op, index, stack);
    case Work::kExponential:
      return compute_exponential(op, index, stack) || compute_around(op, index, stack);
    case Work::kConvolution:
      return compute_convolution(op, index, stack);
    default:
      return compute_around(op, index, stack);
  }
}

bool copy_as_chip(const at::Tensor& to, const at::Tensor& from) {
  const auto& chosen = arithmetic();
  if (!chosen.stochastic || !is_narrow(to) || to.scalar_type() == from.scalar_type()) return false;
  if (from.scalar_type() != at::kFloat && from.scalar_type() != at::kDouble) return false;
  const ChargeScope host(-1, "");
  static Operator& op = operator_named("aten::copy_");
  met("rounding", op);
  round_into(to, from.to(at::kFloat).expand(to.sizes()));
  return true;
}

void met(const char* setting, const Operator& op, bool applied) {
  auto& all = counters();
  const std::lock_guard<std::mutex> lock(all.mutex);
  ++all.counts[{setting, op.name, applied}];
}

std::vector<std::tuple<std::string, std::string, bool, int64_t>> settings_met() {
  auto& all = counters();
  const std::lock_guard<std::mutex> lock(all.mutex);
  std::vector<std::tuple<std::string, std::string, bool, int64_t>> rows;
  for (const auto& [key, count] : all.counts) {
    rows.emplace_back(std::get<0>(key), std::get<1>(key), std::get<2>(key), count);
  }
  return rows;
}

}  // namespace offramp
