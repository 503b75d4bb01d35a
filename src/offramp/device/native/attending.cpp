// The fused attention kernels in the chip's arithmetic: products and exponentials as the chip has
// them, one head of one sequence at a time.
//
// Shapes: query, out and their gradients [batch, heads, queries, size]; key, value and theirs
// [batch, key heads, keys, size], each key head for as many heads; logsumexp [batch, heads,
// queries]. As in the fused kernels of others, weights are rounded to the format of the inputs
// before they are multiplied, and divided by their float32 sum afterwards.
#include <ATen/TensorOperators.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/log.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <limits>

#include "arithmetic.h"
#include "named.h"

namespace offramp {
namespace {

using at::Tensor;

// One call: its format, scale and mask.
struct Attending {
  explicit Attending(const Named& given)
      : query(given.tensor("query")), key(given.tensor("key")), value(given.tensor("value")) {
    type = query.scalar_type();
    const auto* scaled = given.find("scale");
    scale = scaled == nullptr ? 1.0 / std::sqrt(static_cast<double>(query.size(-1)))
                              : scaled->toScalar().toDouble();
    causal = given.find("is_causal")->toBool();
    mask = given.tensor("attn_mask");
    const auto& chosen = arithmetic();
    format = chosen.attention_too ? reduced_now(chosen.matmul, false) : nullptr;
    shared = query.size(1) / key.size(1);
    if (causal) {
      unseen = at::ones({query.size(2), key.size(2)}, query.options().dtype(at::kBool)).triu_(1);
    }
    if (mask.defined()) {
      mask = mask.expand({query.size(0), query.size(1), query.size(2), key.size(2)});
    }
  }

  Tensor times(const Tensor& a, const Tensor& b) const {  // two matrices
    return product(a.unsqueeze(0), b.unsqueeze(0), format).squeeze(0);
  }
  // Scores of all pairs of one head, float32 [queries, keys].
  Tensor scores(int64_t batch, int64_t head) const {
    Tensor made = times(query[batch][head], key[batch][head / shared].t()).mul_(scale);
    const auto least = -std::numeric_limits<double>::infinity();
    if (mask.defined()) {
      const Tensor one = mask[batch][head];
      if (one.scalar_type() == at::kBool) {
        made.masked_fill_(one.logical_not(), least);
      } else {
        made.add_(one.to(at::kFloat));
      }
    }
    return causal ? made.masked_fill_(unseen, least) : made;
  }

  Tensor query, key, value, mask, unseen;
  at::ScalarType type;
  double scale;
  bool causal;
  int64_t shared;
  const Reduced* format;
};

// Gradients of all heads, in the layout of the CPU's kernel: heads beside each other.
Tensor heads_like(const Tensor& tensor) {
  return at::empty({tensor.size(0), tensor.size(2), tensor.size(1), tensor.size(3)},
                   tensor.options().dtype(at::kFloat))
      .transpose(1, 2);
}

void forward_of(const Attending& call, const Tensor& out, const Tensor& logsumexp) {
  for (int64_t b = 0; b < call.query.size(0); ++b) {
    for (int64_t h = 0; h < call.query.size(1); ++h) {
      const Tensor scores = call.scores(b, h);
      Tensor most = at::amax(scores, {1}, true);
      most = at::where(most.isinf(), at::zeros_like(most), most);
      const Tensor weights = exponential(scores - most);
      const Tensor sum = weights.sum(1, true);
      const Tensor mixed_values = call.times(weights.to(call.type), call.value[b][h / call.shared]);
      const Tensor empty = sum == 0;
      out[b][h].copy_(at::where(empty, at::zeros_like(mixed_values), mixed_values / sum));
      logsumexp[b][h].copy_((at::log(sum) + most).squeeze(1));
    }
  }
}

void backward_of(const Attending& call, const Named& given, const std::vector<Tensor>& grads) {
  const Tensor grad = given.tensor("grad_out"), out = given.tensor("out"),
               logsumexp = given.tensor("logsumexp");
  for (int64_t b = 0; b < call.query.size(0); ++b) {
    for (int64_t h = 0; h < call.query.size(1); ++h) {
      const int64_t k = h / call.shared;
      Tensor total = logsumexp[b][h].to(at::kFloat).unsqueeze(1);
      total = at::where(total.isinf(), at::zeros_like(total), total);
      const Tensor weights = exponential(call.scores(b, h) - total);
      const Tensor d_out = grad[b][h];
      const Tensor kept =
          (d_out.to(at::kFloat) * out[b][h].to(at::kFloat)).sum(1, /*keepdim=*/true);
      const Tensor d_weights = call.times(d_out, call.value[b][k].t());
      const Tensor d_scores = (weights * (d_weights - kept)).mul_(call.scale).to(call.type);
      grads[0][b][h].copy_(call.times(d_scores, call.key[b][k]));
      grads[1][b][k].add_(call.times(d_scores.t(), call.query[b][h]));
      grads[2][b][k].add_(call.times(weights.to(call.type).t(), d_out));
    }
  }
}

// Whether a setting changes this call.
bool is_changed(const Operator& op, const Attending& call) {
  const auto& chosen = arithmetic();
  const bool is_float = call.type == at::kFloat;
  bool changed = false;
  const auto note = [&](bool applies, const char* setting) {
    if (applies) met(setting, op);
    changed |= applies;
  };
  note(is_float && call.format != nullptr, "matmul.float32");
  note(!is_float && chosen.accumulate != Narrow::kFloat, "accumulate");
  note(chosen.split_k > 0, "split_k");
  note(chosen.exp_ulp >= 0, "exp_ulp");
  note(chosen.stochastic && !is_float, "rounding");
  return changed;
}

}  // namespace

bool compute_attention(Operator& op, int index, c10::Stack* stack) {
  const Named given(op, *stack);
  const Tensor query = given.tensor("query"), key = given.tensor("key");
  const auto type = query.scalar_type();
  if (type != at::kFloat && type != at::kHalf && type != at::kBFloat16) return false;
  const auto dropout = given.number("dropout_p");
  if (query.dim() != 4 || key.dim() != 4 || dropout != 0 || query.numel() == 0) return false;
  if (key.numel() == 0 || query.size(1) % key.size(1) != 0) return false;
  const ChargeScope host(-1, "");
  const Attending call(given);
  if (!is_changed(op, call)) return false;
  std::vector<Tensor> values;
  if (given.find("grad_out") != nullptr) {
    values = {heads_like(query), heads_like(key).zero_(), heads_like(call.value).zero_()};
    backward_of(call, given, values);
  } else {
    const auto sums =
        at::empty({query.size(0), query.size(2), query.size(1)}, query.options().dtype(at::kFloat));
    auto sizes = query.sizes().vec();
    const bool alike = sizes.back() == call.value.size(3);
    sizes.back() = call.value.size(3);
    values = {alike ? at::empty_like(query, sums.options()) : at::empty(sizes, sums.options()),
              sums.transpose(1, 2)};
    forward_of(call, values[0], values[1]);
  }
  stack->resize(stack->size() - op.writes.size());
  const bool forward = values.size() == 2;
  for (size_t i = 0; i < values.size(); ++i) {
    const auto to = forward && i == 1 ? at::kFloat : type;
    stack->emplace_back(finish(op, index, values[i], to, Tensor()));
  }
  return true;
}

}  // namespace offramp
