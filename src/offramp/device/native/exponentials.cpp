// Exponentials that are off by up to a given number of units in the last place, and what is made
// of them.
//
// The error of one argument is always the same, as in a table or a polynomial: it is drawn from the
// argument's bits, evenly from -N to N representable numbers around the correctly rounded result.
// exp(0) is 1; results that are zero, subnormal or infinite stay.
#include <ATen/TensorOperators.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/exp2.h>
#include <ATen/ops/log.h>
#include <ATen/ops/log1p.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>

#include "arithmetic.h"
#include "named.h"

namespace offramp {
namespace {

using at::Tensor;

uint32_t mixed(uint32_t x) {  // the finalizer of MurmurHash3
  x = (x ^ (x >> 16)) * 0x85ebca6bU;
  x = (x ^ (x >> 13)) * 0xc2b2ae35U;
  return x ^ (x >> 16);
}

// Moves `values` (float32, dense) away from the right results, by the bits of `x`.
Tensor moved(const Tensor& values, const Tensor& x) {
  const int64_t ulp = arithmetic().exp_ulp;
  const auto* keys = static_cast<const uint32_t*>(x.const_data_ptr());
  auto* words = static_cast<uint32_t*>(values.data_ptr());
  for (int64_t i = 0; i < values.numel(); ++i) {
    const uint32_t exponent = words[i] & 0x7f800000U;
    const bool zero = (keys[i] & 0x7fffffffU) == 0;
    if (exponent == 0 || exponent == 0x7f800000U || zero) continue;
    const int64_t away = static_cast<int64_t>(mixed(keys[i]) % static_cast<uint64_t>(2 * ulp + 1));
    const auto word = static_cast<uint32_t>(static_cast<int64_t>(words[i]) + away - ulp);
    const uint32_t after = word & 0x7f800000U;
    if (after != 0 && after != 0x7f800000U) words[i] = word;
  }
  return values;
}

Tensor sigmoid_of(const Tensor& x) { return exponential(-x).add_(1).reciprocal_(); }

// Below 0.55 CUDA's and others' tanh is a polynomial, without an exponential.
Tensor tanh_of(const Tensor& x) {
  const Tensor large = 1 - 2 / (exponential(2 * x) + 1);
  return at::where(x.abs() < 0.55, at::tanh(x), large);
}

constexpr double kBeta = M_SQRT2 * M_2_SQRTPI * 0.5, kKappa = 0.044715;  // of gelu's tanh form

Tensor gelu_of(const Tensor& x) {
  return 0.5 * x * (1 + tanh_of(kBeta * (x + kKappa * x * x * x)));
}

Tensor gelu_gradient(const Tensor& x) {
  const Tensor t = tanh_of(kBeta * (x + kKappa * x * x * x));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * kBeta * (1 + 3 * kKappa * x * x);
}

Tensor shifted(const Tensor& x, c10::IntArrayRef dims, Tensor& most) {
  most = at::amax(x, dims, true);
  most = at::where(most.isinf(), at::zeros_like(most), most);
  return exponential(x - most);
}

Tensor softplus_of(const Named& given, const Tensor& x) {
  const auto scaled = x * given.number("beta");
  const auto soft = at::log1p(exponential(scaled)) / given.number("beta");
  return at::where(scaled > given.number("threshold"), x, soft);
}

Tensor softplus_gradient(const Named& given, const Tensor& grad, const Tensor& x) {
  const auto scaled = x * given.number("beta");
  const auto z = exponential(scaled);
  return at::where(scaled > given.number("threshold"), grad, grad * z / (z + 1));
}

Tensor wide(const Tensor& tensor) {
  const Tensor made = arithmetic().flush_to_zero ? flushed(tensor) : tensor;
  return made.to(at::kFloat);
}

bool is_tanh_form(const Named& given) { return given.find("approximate")->toStringRef() == "tanh"; }

// The results of `base` in float32; undefined where there is no exponential in it.
Tensor evaluate(const std::string& base, const Named& given) {
  const bool backward = base.find("backward") != std::string::npos;
  const Tensor x = wide(given.tensor(base == "_log_softmax_backward_data" ? "output" : "self"));
  const Tensor grad = backward ? wide(given.tensor("grad_output")) : Tensor();
  if (base == "exp") return exponential(x);
  if (base == "exp2")
    return moved(at::exp2(x.contiguous().to(at::kDouble)).to(at::kFloat), x.contiguous());
  if (base == "sigmoid") return sigmoid_of(x);
  if (base == "silu") return x * sigmoid_of(x);
  if (base == "tanh") return tanh_of(x);
  if (base == "gelu") return is_tanh_form(given) ? gelu_of(x) : Tensor();
  if (base == "gelu_backward") return is_tanh_form(given) ? grad * gelu_gradient(x) : Tensor();
  if (base == "softplus") return softplus_of(given, x);
  if (base == "softplus_backward") return softplus_gradient(given, grad, x);
  if (base == "silu_backward") {
    const auto s = sigmoid_of(x);
    return grad * s * (1 + x * (1 - s));
  }
  Tensor most;
  if (base == "logsumexp") {
    const auto dims = given.find("dim")->toDimVector();
    const bool keep = given.find("keepdim")->toBool();
    const auto sum = shifted(x, dims, most).sum(dims, keep);
    return at::log(sum) + (keep ? most : most.sum(dims, false));
  }
  const int64_t dim = given.find("dim")->toInt();
  if (base == "_log_softmax_backward_data") return grad - exponential(x) * grad.sum(dim, true);
  const auto e = shifted(x, {dim}, most);
  const auto sum = e.sum(dim, true);
  return base == "_softmax" ? e / sum : x - most - at::log(sum);
}

}  // namespace

Tensor exponential(const Tensor& x) {
  if (arithmetic().exp_ulp < 0) return x.exp();
  const Tensor dense = x.contiguous();
  return moved(dense.to(at::kDouble).exp_().to(at::kFloat), dense);
}

bool compute_exponential(Operator& op, int index, c10::Stack* stack) {
  if (arithmetic().exp_ulp < 0) return false;
  const Named given(op, *stack);
  auto base = op.handle.operator_name().name.substr(6);
  const bool in_place = base.back() == '_';
  if (in_place) base.pop_back();
  const auto& first = (*stack)[stack->size() - op.writes.size()].toTensor();
  const auto type = first.scalar_type();
  if (type != at::kFloat && type != at::kHalf && type != at::kBFloat16) return false;
  Tensor out = in_place ? first : given.tensor("out");
  if (!out.defined()) out = given.tensor("grad_input");
  if (out.defined() && out.scalar_type() != type) return false;
  const auto& schema = op.handle.schema();
  if (!in_place && !out.defined() && schema.is_mutable()) return false;
  const ChargeScope host(-1, "");
  const Tensor values = evaluate(base, given);
  if (!values.defined()) return false;
  met("exp_ulp", op);
  if (arithmetic().stochastic && type != at::kFloat) met("rounding", op);
  const Tensor result = finish(op, index, values, type, out);
  stack->resize(stack->size() - op.writes.size());
  stack->emplace_back(result);
  return true;
}

}  // namespace offramp
