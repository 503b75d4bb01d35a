// Attention as CUDA has it: the choice among the fused kernels, and those kernels by CUDA's names,
// which DTensor's rules, checkpointing policies and counters of operations know. The CPU's flash
// kernel computes all of them.
//
// Shapes: query [batch, heads, queries, size], key and value [batch, heads, keys, size], logsumexp
// [batch, heads, queries]. What only seeds CUDA's dropout is zero, and dropout is refused: the
// masks of forward and backward could not be the same.
#include <ATen/Context.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_fused_sdp_choice_native.h>
#include <ATen/ops/_scaled_dot_product_attention_math.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention.h>
#include <ATen/ops/_scaled_dot_product_efficient_attention.h>
#include <ATen/ops/_scaled_dot_product_flash_attention.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <array>
#include <limits>
#include <optional>
#include <tuple>

#include "arithmetic.h"
#include "operators.h"
#include "rehearse.h"
#include "tape.h"

namespace offramp {
namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Scale = std::optional<double>;
using Grads = std::tuple<Tensor, Tensor, Tensor>;
using Attended =
    std::tuple<Tensor, Tensor, Tensor, Tensor, c10::SymInt, c10::SymInt, Tensor, Tensor, Tensor>;

enum Backend : int64_t { kMath = 0, kFlash = 1, kEfficient = 2, kCudnn = 3 };  // at::SDPBackend

Operator& flash_operator() {
  static auto& found = operator_named("aten::_scaled_dot_product_flash_attention");
  return found;
}

// The fused kernel that CUDA would take, of those enabled and those that the chip has, where the
// CPU's takes these arguments.
int64_t choose(const Tensor& query, const Tensor& key, const Tensor& value, const MaybeTensor& mask,
               double dropout, bool causal, Scale scale, bool gqa) {
  const bool masked = mask && mask->defined();
  if (masked && mask->requires_grad()) return kMath;
  auto& context = at::globalContext();
  const bool flash = context.userEnabledFlashSDP();
  const bool efficient = context.userEnabledMemEfficientSDP();
  if (!flash && !efficient && !context.userEnabledCuDNNSDP()) return kMath;
  if (!flash) context.setSDPUseFlash(true);
  const auto of_cpu =
      at::native::_fused_sdp_choice_cpp(query, key, value, mask, dropout, causal, scale, gqa);
  if (!flash) context.setSDPUseFlash(false);
  if (of_cpu != kFlash) return kMath;
  const bool half = query.scalar_type() == at::kHalf || query.scalar_type() == at::kBFloat16;
  // CUDA's aligns a causal mask to the last tokens, scaled_dot_product_attention to the first.
  const bool aligned = !causal || query.sym_size(-2) == key.sym_size(-2);
  const bool has_flash = aligned && flash_operator().missing.empty();
  if (flash && has_flash && !masked && (half || !efficient)) return kFlash;
  // The memory-efficient kernel has as many heads of keys as of queries; plain products come next.
  const bool grouped = query.sym_size(-3) != key.sym_size(-3);
  if (efficient && !grouped) return kEfficient;
  if (grouped && context.userEnabledMathSDP()) return kMath;
  return context.userEnabledCuDNNSDP() ? kCudnn : kMath;
}

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value,
                 const MaybeTensor& mask, double dropout, bool causal, Scale scale, bool gqa) {
  TORCH_CHECK(query.dim() >= 2 && key.dim() >= 2 && value.dim() >= 2,
              "scaled_dot_product_attention: query, key and value must have at least 2 dimensions");
  TORCH_CHECK(
      query.dtype() == key.dtype() && query.dtype() == value.dtype(),
      "Expected query, key, and value to have the same dtype, but got query.dtype: ", query.dtype(),
      " key.dtype: ", key.dtype(), " and value.dtype: ", value.dtype(), " instead.");
  const auto choice = choose(query, key, value, mask, dropout, causal, scale, gqa);
  if (choice == kMath) {
    TORCH_CHECK(at::globalContext().userEnabledMathSDP(),
                "No available kernel. Aborting execution. The attention backends that are enabled "
                "do not take these arguments; enable SDPBackend.MATH as well.");
    return std::get<0>(at::_scaled_dot_product_attention_math(query, key, value, mask, dropout,
                                                              causal, std::nullopt, scale, gqa));
  }
  if (choice == kFlash) {
    return std::get<0>(
        at::_scaled_dot_product_flash_attention(query, key, value, dropout, causal, false, scale));
  }
  MaybeTensor bias = mask;
  if (mask && mask->defined() && mask->scalar_type() == at::kBool) {
    bias = at::zeros_like(*mask, query.options())
               .masked_fill_(mask->logical_not(), -std::numeric_limits<double>::infinity());
  }
  const bool trains = query.requires_grad() || key.requires_grad() || value.requires_grad();
  if (choice == kEfficient) {
    return std::get<0>(at::_scaled_dot_product_efficient_attention(query, key, value, bias, trains,
                                                                   dropout, causal, scale));
  }
  return std::get<0>(at::_scaled_dot_product_cudnn_attention(query, key, value, bias, trains,
                                                             dropout, causal, false, scale));
}

// Within: the causal mask of the CPU's kernel is aligned to the last query and the last key.
thread_local bool to_the_last = false;

class AlignedToTheLast {
 public:
  explicit AlignedToTheLast(bool on) : before_(to_the_last) { to_the_last = on; }
  ~AlignedToTheLast() { to_the_last = before_; }
  AlignedToTheLast(const AlignedToTheLast&) = delete;
  AlignedToTheLast& operator=(const AlignedToTheLast&) = delete;

 private:
  bool before_;
};

[[noreturn]] void refuse_kernel(const char* kind, const char* what) {
  const auto name = c10::str("aten::_scaled_dot_product_", kind, "_attention");
  static constexpr char reason[] = "the CPU has no kernel to compute its values with";
  refuse(
      operator_named(name.c_str()), c10::str("with ", what, ", ", reason),
      c10::str(name, " with ", what, " is not supported on ", chip().name, " (virtual): ", reason,
               ". Call torch.nn.functional.scaled_dot_product_attention, which chooses "
               "one that it has."));
}

std::tuple<Tensor, Tensor> forward(const char* kind, const Tensor& query, const Tensor& key,
                                   const Tensor& value, const MaybeTensor& bias, double dropout,
                                   bool causal, Scale scale) {
  if (dropout != 0) refuse_kernel(kind, "dropout");
  return at::_scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, bias,
                                                         scale);
}

Grads backward(const Tensor& grad, const Tensor& query, const Tensor& key, const Tensor& value,
               const Tensor& bias, const Tensor& out, const Tensor& logsumexp, bool causal,
               Scale scale) {
  const MaybeTensor given = bias.defined() ? MaybeTensor(bias) : std::nullopt;
  return at::_scaled_dot_product_flash_attention_for_cpu_backward(
      grad, query, key, value, out, logsumexp, 0.0, causal, given, scale);
}

// A result as CUDA's kernels lay it out: as `like` is, or [batch, tokens, heads, size] in memory.
// Compiled graphs rely on it.
Tensor laid_out(const Tensor& made, const MaybeTensor& like = std::nullopt) {
  if (!made.defined()) return made;
  const auto meta = made.options().device(at::kMeta);
  const auto wanted = like
                          ? at::empty_like(*like, meta)
                          : at::empty_like(made.transpose(1, 2), meta, at::MemoryFormat::Contiguous)
                                .transpose(1, 2);
  if (made.strides() == wanted.strides()) return made;
  const TapePause part_of_the_kernel;
  const auto out = made.as_strided(made.sizes(), wanted.strides());  // in the memory it has
  return rehearsing() && !is_known(made) ? out : out.copy_(made.cpu());
}

Grads laid_out(const Grads& made, const Tensor& query, const Tensor& key, const Tensor& value) {
  const auto& [d_query, d_key, d_value] = made;
  return {laid_out(d_query, query), laid_out(d_key, key), laid_out(d_value, value)};
}

// CUDA's kernels write these themselves.
Tensor seed(const Tensor& like) {
  const TapePause part_of_the_kernel;
  return at::zeros({}, like.options().dtype(at::kLong));
}

Attended attended(std::tuple<Tensor, Tensor> made, const Tensor& query, const Tensor& key) {
  auto& [out, logsumexp] = made;
  const TapePause part_of_the_kernel;
  const auto nothing = at::zeros({0}, query.options());
  return {laid_out(out, query), logsumexp,   Tensor(),    Tensor(), query.sym_size(2),
          key.sym_size(2),      seed(query), seed(query), nothing};
}

Attended flash(const Tensor& query, const Tensor& key, const Tensor& value, double dropout,
               bool causal, bool, Scale scale) {
  require(flash_operator());
  const AlignedToTheLast as_cuda(causal);
  const auto made = forward("flash", query, key, value, std::nullopt, dropout, causal, scale);
  return attended(made, query, key);
}

Grads flash_backward(const Tensor& grad, const Tensor& query, const Tensor& key,
                     const Tensor& value, const Tensor& out, const Tensor& logsumexp, const Tensor&,
                     const Tensor&, c10::SymInt, c10::SymInt, double, bool causal, const Tensor&,
                     const Tensor&, Scale scale) {
  const AlignedToTheLast as_cuda(causal);
  return laid_out(backward(grad, query, key, value, Tensor(), out, logsumexp, causal, scale), query,
                  key, value);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> efficient(const Tensor& query, const Tensor& key,
                                                     const Tensor& value, const MaybeTensor& bias,
                                                     bool, double dropout, bool causal,
                                                     Scale scale) {
  const auto [out, logsumexp] =
      forward("efficient", query, key, value, bias, dropout, causal, scale);
  return {laid_out(out), logsumexp, seed(query), seed(query)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> efficient_backward(
    const Tensor& grad, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor& bias, const Tensor& out, const Tensor& logsumexp, const Tensor&, const Tensor&,
    double, std::array<bool, 4> wanted, bool causal, Scale scale) {
  if (!grad.defined()) return {};
  if (wanted[3]) refuse_kernel("efficient", "a gradient of the bias");
  auto [d_query, d_key, d_value] =
      backward(grad, query, key, value, bias, out, logsumexp, causal, scale);
  return {laid_out(d_query), laid_out(d_key), laid_out(d_value), Tensor()};
}

Attended cudnn(const Tensor& query, const Tensor& key, const Tensor& value, const MaybeTensor& bias,
               bool, double dropout, bool causal, bool, Scale scale) {
  return attended(forward("cudnn", query, key, value, bias, dropout, causal, scale), query, key);
}

Grads cudnn_backward(const Tensor& grad, const Tensor& query, const Tensor& key,
                     const Tensor& value, const Tensor& out, const Tensor& logsumexp, const Tensor&,
                     const Tensor&, const Tensor& bias, const Tensor&, const Tensor&, c10::SymInt,
                     c10::SymInt, double, bool causal, Scale scale) {
  return laid_out(backward(grad, query, key, value, bias, out, logsumexp, causal, scale), query,
                  key, value);
}

}  // namespace

void align_causal_mask(const Operator& op, c10::Stack* stack) {
  if (!to_the_last || op.work != Work::kAttention) return;
  const auto& schema = op.handle.schema();
  const auto given = stack->end() - static_cast<int64_t>(schema.arguments().size());
  const auto argument = [&](const char* name) -> c10::IValue& {
    return given[*schema.argumentIndexWithName(name)];
  };
  const Tensor query = argument("query").toTensor(), key = argument("key").toTensor();
  const int64_t queries = query.size(-2), keys = key.size(-2);
  if (queries == keys || !argument("is_causal").toBool()) return;
  const ChargeScope host(-1, "");
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  argument("is_causal") = false;
  argument("attn_mask") =
      at::full({queries, keys}, -std::numeric_limits<double>::infinity(), query.options())
          .triu_(keys - queries + 1);
}

void register_attention(torch::Library& library) {
  // Asked where no kernel of ours stands between: by fake tensors.
  if (dense_key() == c10::DispatchKey::CUDA) {
    at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&choose);
  }
  library.impl("_scaled_dot_product_flash_attention", flash);
  library.impl("_scaled_dot_product_flash_attention_backward", flash_backward);
  library.impl("_scaled_dot_product_efficient_attention", efficient);
  library.impl("_scaled_dot_product_efficient_attention_backward", efficient_backward);
  library.impl("_scaled_dot_product_cudnn_attention", cudnn);
  library.impl("_scaled_dot_product_cudnn_attention_backward", cudnn_backward);
  library.impl("scaled_dot_product_attention", attention);
  const auto autograd = c10::getAutogradKeyFromBackend(c10::toBackendComponent(dense_key()));
  static torch::Library above(torch::Library::IMPL, "aten", autograd, __FILE__, __LINE__);
  above.impl("scaled_dot_product_attention", attention);
}

}  // namespace offramp
