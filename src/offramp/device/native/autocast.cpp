// Mixed precision for own-name chips, by the lists of operators that CUDA has. For `cuda` itself
// PyTorch brings these kernels along, in every build. One boxed kernel a policy does it all.
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <memory>
#include <string>
#include <vector>

#include "chip.h"

namespace at::autocast {
// ATen/autocast_mode.h declares these, and pulls in all of ATen.
TORCH_API Tensor cached_cast(ScalarType to, const Tensor& tensor, c10::DeviceType device);
TORCH_API ScalarType get_autocast_dtype(c10::DeviceType device);
}  // namespace at::autocast

namespace offramp {
namespace {

constexpr auto kDevice = c10::DeviceType::PrivateUse1;
constexpr auto kKey = c10::DispatchKey::AutocastPrivateUse1;
using Listed = std::vector<const char*>;

// The lists AT_FORALL_... of ATen/autocast_mode.h; tests/torch/test_device_autocast.py compares
// them.
const Listed kLower{"_convolution.deprecated",
                    "_convolution",
                    "conv1d",
                    "conv2d",
                    "conv3d",
                    "conv_tbc",
                    "conv_transpose1d",
                    "conv_transpose2d.input",
                    "conv_transpose3d.input",
                    "convolution",
                    "prelu",
                    "addmm",
                    "addmv",
                    "addr",
                    "matmul",
                    "einsum",
                    "mm",
                    "mv",
                    "linalg_vecdot",
                    "linear",
                    "addbmm",
                    "baddbmm",
                    "bmm",
                    "chain_matmul",
                    "linalg_multi_dot",
                    "_thnn_fused_lstm_cell",
                    "_thnn_fused_gru_cell",
                    "lstm_cell",
                    "gru_cell",
                    "rnn_tanh_cell",
                    "rnn_relu_cell",
                    "_scaled_dot_product_flash_attention",
                    "scaled_dot_product_attention"};
const Listed kFloat32{"acos",
                      "asin",
                      "cosh",
                      "erfinv",
                      "exp",
                      "expm1",
                      "log",
                      "log10",
                      "log2",
                      "log1p",
                      "reciprocal",
                      "rsqrt",
                      "sinh",
                      "tan",
                      "pow.Tensor_Scalar",
                      "pow.Tensor_Tensor",
                      "pow.Scalar",
                      "softplus",
                      "layer_norm",
                      "native_layer_norm",
                      "rms_norm",
                      "group_norm",
                      "frobenius_norm.dim",
                      "nuclear_norm",
                      "nuclear_norm.dim",
                      "cosine_similarity",
                      "poisson_nll_loss",
                      "cosine_embedding_loss",
                      "nll_loss",
                      "nll_loss2d",
                      "hinge_embedding_loss",
                      "kl_div",
                      "l1_loss",
                      "smooth_l1_loss",
                      "huber_loss",
                      "mse_loss",
                      "margin_ranking_loss",
                      "multilabel_margin_loss",
                      "soft_margin_loss",
                      "triplet_margin_loss",
                      "multi_margin_loss",
                      "binary_cross_entropy_with_logits",
                      "dist",
                      "pdist",
                      "cdist",
                      "renorm",
                      "logsumexp",
                      "upsample_nearest1d",
                      "_upsample_nearest_exact1d",
                      "upsample_nearest2d",
                      "_upsample_nearest_exact2d",
                      "upsample_nearest3d",
                      "_upsample_nearest_exact3d",
                      "upsample_linear1d",
                      "upsample_bilinear2d",
                      "_upsample_bilinear2d_aa",
                      "upsample_trilinear3d",
                      "upsample_bicubic2d",
                      "_upsample_bicubic2d_aa"};
const Listed kFloat32Result{"prod",
                            "prod.dim_int",
                            "softmax.int",
                            "log_softmax.int",
                            "cumprod",
                            "cumsum",
                            "linalg_vector_norm",
                            "linalg_matrix_norm",
                            "linalg_matrix_norm.str_ord",
                            "sum",
                            "sum.dim_IntList"};
const Listed kWidest{"addcdiv", "addcmul",      "atan2",     "bilinear",  "cross",      "dot",
                     "vdot",    "grid_sampler", "index_put", "tensordot", "scatter_add"};

enum class Policy { kLower, kFloat32, kFloat32Result, kWidest, kNorm, kBanned };

bool eligible(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kDevice && tensor.is_floating_point() &&
         tensor.scalar_type() != at::kDouble;
}

// Calls `visit` on every tensor among the arguments, lists included, and keeps what it returns.
template <class Visit>
void each_tensor(c10::Stack& stack, size_t count, const Visit& visit) {
  for (size_t i = stack.size() - count; i < stack.size(); ++i) {
    c10::IValue& value = stack[i];
    if (value.isTensor()) {
      value = visit(value.toTensor());
    } else if (value.isTensorList()) {
      auto tensors = value.toTensorVector();
      for (auto& tensor : tensors) tensor = visit(tensor);
      value = c10::List<at::Tensor>(std::move(tensors));
    }
  }
}

at::ScalarType widest(c10::Stack& stack, size_t count) {
  auto type = at::autocast::get_autocast_dtype(kDevice);
  each_tensor(stack, count, [&](const at::Tensor& tensor) {
    if (eligible(tensor) && tensor.scalar_type() == at::kFloat) type = at::kFloat;
    return tensor;
  });
  return type;
}

struct Kernel final : c10::OperatorKernel {
  explicit Kernel(Policy policy) : policy(policy) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, c10::Stack* stack) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(kKey);
    const size_t count = op.schema().arguments().size();
    const auto cast_all = [&](at::ScalarType to) {
      each_tensor(*stack, count, [to](const at::Tensor& tensor) {
        return tensor.defined() ? at::autocast::cached_cast(to, tensor, kDevice) : tensor;
      });
    };
    switch (policy) {
      case Policy::kBanned:
        TORCH_CHECK(false,
                    "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to "
                    "autocast. Use torch.nn.functional.binary_cross_entropy_with_logits or "
                    "torch.nn.BCEWithLogitsLoss, or disable autocast around them.");
      case Policy::kLower:
        cast_all(at::autocast::get_autocast_dtype(kDevice));
        break;
      case Policy::kFloat32:
        cast_all(at::kFloat);
        break;
      case Policy::kWidest:
        cast_all(widest(*stack, count));
        break;
      case Policy::kFloat32Result:
        ask_float32(op, *stack, count);
        break;
      case Policy::kNorm:
        norm(op, *stack, count);
        return;
    }
    op.callBoxed(stack);
  }

  static void ask_float32(const c10::OperatorHandle& op, c10::Stack& stack, size_t count) {
    if (!eligible(stack[stack.size() - count].toTensor())) return;
    const auto& arguments = op.schema().arguments();
    for (size_t i = 0; i < count; ++i) {
      c10::IValue& value = stack[stack.size() - count + i];
      if (arguments[i].name() == "dtype" && value.isNone()) value = at::kFloat;
    }
  }

  // The overloads without a dtype continue as those with one.
  static void norm(const c10::OperatorHandle& op, c10::Stack& stack, size_t count) {
    const auto& self = stack[stack.size() - count].toTensor();
    const auto type = eligible(self) ? at::kFloat : self.scalar_type();
    stack.emplace_back(type);
    const bool over_dim = op.operator_name().overload_name == "ScalarOpt_dim";
    c10::Dispatcher::singleton()
        .findSchemaOrThrow("aten::norm", over_dim ? "ScalarOpt_dim_dtype" : "ScalarOpt_dtype")
        .callBoxed(&stack);
  }

  Policy policy;
};

}  // namespace

void register_autocast() {
  if (chip().type == c10::DeviceType::CUDA) return;
  static torch::Library rest(torch::Library::IMPL, "_", kKey, __FILE__, __LINE__);
  rest.fallback(torch::CppFunction::makeFallthrough());
  static torch::Library library(torch::Library::IMPL, "aten", kKey, __FILE__, __LINE__);
  const auto add = [](const Listed& names, Policy policy) {
    for (const char* name : names) {
      library.impl(name,
                   torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Kernel>(policy)));
    }
  };
  add(kLower, Policy::kLower);
  add(kFloat32, Policy::kFloat32);
  add(kFloat32Result, Policy::kFloat32Result);
  add(kWidest, Policy::kWidest);
  add({"norm.Scalar", "norm.ScalarOpt_dim"}, Policy::kNorm);
  add({"binary_cross_entropy"}, Policy::kBanned);
}

}  // namespace offramp
