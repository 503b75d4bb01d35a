// Operators that PyTorch composes differently for an accelerator than for the CPU: the fused cells
// of recurrent networks, which have kernels for accelerators only, and softmax.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "operators.h"

namespace offramp {
namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

Tensor plus(const Tensor& sum, const MaybeTensor& bias) {
  return bias && bias->defined() ? sum + *bias : sum;
}

// Long short-term memory, one step: gates i, f, g, o (Hochreiter and Schmidhuber 1997; the gate
// order is that of torch.nn.LSTMCell). Shapes: gates [batch, 4 hidden], cell [batch, hidden].
std::tuple<Tensor, Tensor, Tensor> lstm_cell(const Tensor& input_gates, const Tensor& hidden_gates,
                                             const Tensor& cell, const MaybeTensor& input_bias,
                                             const MaybeTensor& hidden_bias) {
  const auto gates = plus(plus(input_gates + hidden_gates, input_bias), hidden_bias).chunk(4, 1);
  const auto i = gates[0].sigmoid(), f = gates[1].sigmoid(), g = gates[2].tanh(),
             o = gates[3].sigmoid();
  const auto next = f * cell + i * g;
  return {o * next.tanh(), next, at::cat({i, f, g, o}, 1)};
}

std::tuple<Tensor, Tensor, Tensor> lstm_cell_backward(const MaybeTensor& grad_hidden,
                                                      const MaybeTensor& grad_cell,
                                                      const Tensor& cell, const Tensor& next,
                                                      const Tensor& workspace, bool has_bias) {
  const auto gates = workspace.chunk(4, 1);
  const auto &i = gates[0], &f = gates[1], &g = gates[2], &o = gates[3];
  const auto squashed = next.tanh();
  const auto d_hidden = grad_hidden && grad_hidden->defined() ? *grad_hidden : at::zeros_like(next);
  auto d_next = d_hidden * o * (1 - squashed * squashed);
  if (grad_cell && grad_cell->defined()) d_next = d_next + *grad_cell;
  auto d_gates = at::cat({d_next * g * i * (1 - i), d_next * cell * f * (1 - f),
                          d_next * i * (1 - g * g), d_hidden * squashed * o * (1 - o)},
                         1);
  return {d_gates, d_next * f, has_bias ? d_gates.sum(0) : Tensor()};
}

// Gated recurrent unit, one step: gates r, z, n in the order of torch.nn.GRUCell. The workspace
// [batch, 5 hidden] keeps r, z, n, the old state and the hidden part of n.
std::tuple<Tensor, Tensor> gru_cell(const Tensor& input_gates, const Tensor& hidden_gates,
                                    const Tensor& state, const MaybeTensor& input_bias,
                                    const MaybeTensor& hidden_bias) {
  const auto in = plus(input_gates, input_bias).chunk(3, 1);
  const auto hidden = plus(hidden_gates, hidden_bias).chunk(3, 1);
  const auto r = (in[0] + hidden[0]).sigmoid(), z = (in[1] + hidden[1]).sigmoid();
  const auto n = (in[2] + r * hidden[2]).tanh();
  return {n + z * (state - n), at::cat({r, z, n, state, hidden[2]}, 1)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gru_cell_backward(const Tensor& grad,
                                                                     const Tensor& workspace,
                                                                     bool has_bias) {
  const auto saved = workspace.chunk(5, 1);
  const auto &r = saved[0], &z = saved[1], &n = saved[2], &state = saved[3], &hidden_n = saved[4];
  const auto d_z = grad * (state - n) * z * (1 - z);
  const auto d_n = grad * (1 - z) * (1 - n * n);
  const auto d_r = d_n * hidden_n * r * (1 - r);
  auto d_input = at::cat({d_r, d_z, d_n}, 1);
  auto d_hidden = at::cat({d_r, d_z, d_n * r}, 1);
  return {d_input, d_hidden, grad * z, has_bias ? d_input.sum(0) : Tensor(),
          has_bias ? d_hidden.sum(0) : Tensor()};
}

// CUDA's softmax reads float16 and gives float32; the CPU's kernels know one format at a time.
template <const char* Name>
Tensor softmax(const Tensor& self, int64_t dim, bool half_to_float) {
  static Operator& op = operator_named(Name);
  c10::Stack stack{half_to_float ? self.to(at::kFloat) : self, dim, false};
  run_on_host(op, c10::DispatchKey::CPU, &stack);
  return stack.back().toTensor();
}

template <const char* Name>
Tensor softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim,
                        at::ScalarType input_type) {
  static Operator& op = operator_named(Name);
  c10::Stack stack{grad, output, dim, grad.scalar_type()};
  run_on_host(op, c10::DispatchKey::CPU, &stack);
  return stack.back().toTensor().to(input_type);
}

constexpr char kSoftmax[] = "aten::_softmax";
constexpr char kLogSoftmax[] = "aten::_log_softmax";
constexpr char kSoftmaxBackward[] = "aten::_softmax_backward_data";
constexpr char kLogSoftmaxBackward[] = "aten::_log_softmax_backward_data";

}  // namespace

void register_composed_operators(torch::Library& library) {
  library.impl("_thnn_fused_lstm_cell", lstm_cell);
  library.impl("_thnn_fused_lstm_cell_backward_impl", lstm_cell_backward);
  library.impl("_thnn_fused_gru_cell", gru_cell);
  library.impl("_thnn_fused_gru_cell_backward", gru_cell_backward);
  library.impl("_softmax", softmax<kSoftmax>);
  library.impl("_log_softmax", softmax<kLogSoftmax>);
  library.impl("_softmax_backward_data", softmax_backward<kSoftmaxBackward>);
  library.impl("_log_softmax_backward_data", softmax_backward<kLogSoftmaxBackward>);
}

}  // namespace offramp
