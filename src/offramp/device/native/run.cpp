// The boxed kernel: the chip's tensors go in as CPU views, what comes out becomes the chip's.
#include <ATen/ops/_efficientzerotensor.h>
#include <c10/util/SmallVector.h>

#include <optional>

#include "arithmetic.h"
#include "declared.h"
#include "generator.h"
#include "operators.h"
#include "rehearse.h"
#include "signature.h"
#include "tape.h"

namespace offramp {
namespace {

uint64_t refused_formats = 0;

struct Written {
  at::Tensor tensor;
  at::Tensor view;
};

// One call's conversion of arguments.
struct Call {
  Operator& op;
  int index{-1};            // the chip that the call runs on
  bool host_tensor{false};  // a CPU tensor that is no scalar is among the arguments
  bool host_first{false};   // ... as the first of them
  size_t position{0};
  c10::SmallVector<at::Tensor, 1> host_written;
  c10::SmallVector<Written, 4> written;

  at::Tensor to_host(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    const auto where = tensor.device();
    if (!is_chip(where)) {
      if (where.is_cpu()) note_host(tensor);
      return tensor;
    }
    note_format(tensor.scalar_type());
    if (index < 0) {
      index = where.index();
    } else if (index != where.index() && !op.mixes_devices) {
      if (tensor.dim() > 0 || op.writes[position]) refuse_mix(where);
    }
    at::Tensor view = host_view(tensor);
    if (op.writes[position]) written.push_back({tensor, view});
    if (op.asks_gradient && tensor.requires_grad()) {
      view.unsafeGetTensorImpl()->set_requires_grad(true);
    }
    return view;
  }

  // CUDA takes a scalar of the CPU beside its own tensors, but neither writes nor starts from one.
  void note_host(const at::Tensor& tensor) {
    if (op.writes[position]) {
      host_written.push_back(tensor);
      host_tensor = true;
    } else if (tensor.dim() > 0) {
      host_tensor = true;
      host_first |= position == 0;
    }
  }

  void note_format(c10::ScalarType type) const {
    if (index < 0)
      format_counts()[static_cast<size_t>(type)].fetch_add(1, std::memory_order_relaxed);
    if ((refused_formats >> static_cast<int>(type) & 1) != 0 && !op.moves_only) refuse_format(type);
  }

  [[noreturn]] void refuse_format(c10::ScalarType type) const {
    const auto reason = c10::str(chip().name, " has no ", c10::toString(type), " arithmetic");
    refuse(op, reason,
           c10::str("\"", op.name, "\" not implemented for '", c10::toString(type), "': ", reason,
                    ". Cast to a format that the chip has; `offramp chips show ", chip().name,
                    "` lists them."));
  }

  [[noreturn]] void refuse_mix(c10::Device other) const {
    TORCH_CHECK(false,
                "Expected all tensors to be on the same device, but found at least two "
                "devices, ",
                device(index < 0 ? 0 : index), " and ", other,
                "! (when checking "
                "argument for argument ",
                op.handle.schema().arguments()[position].name(), " in ", op.name, ")");
    __builtin_unreachable();
  }

  void convert(c10::IValue& value) {
    if (value.isTensor()) {
      const auto& tensor = value.toTensor();
      if (tensor.defined()) value = to_host(tensor);
    } else if (value.isTensorList()) {
      auto tensors = value.toTensorVector();
      for (auto& tensor : tensors) tensor = to_host(tensor);
      value = c10::List<at::Tensor>(std::move(tensors));
    } else if (value.isOptionalTensorList()) {
      const auto tensors = value.toOptionalTensorList();
      c10::List<std::optional<at::Tensor>> views;
      views.reserve(tensors.size());
      for (const std::optional<at::Tensor> tensor : tensors) {
        views.push_back(tensor ? std::optional<at::Tensor>(to_host(*tensor)) : std::nullopt);
      }
      value = std::move(views);
    } else if (value.isDevice() && is_chip(value.toDevice())) {
      if (index < 0) {
        index = value.toDevice().has_index() ? value.toDevice().index() : current_device();
      }
      value = c10::Device(c10::kCPU);
    } else if (value.isStorage() && is_chip(value.toStorage().device())) {
      TORCH_CHECK(false, op.name, " on a storage of ", chip().name, " is not supported");
    }
  }

  at::Tensor from_host(const at::Tensor& tensor) const {
    if (!tensor.defined()) return tensor;
    for (const auto& pair : written) {
      if (pair.view.is_same(tensor)) return pair.tensor;
    }
    for (const auto& given : host_written) {
      if (given.is_same(tensor)) return tensor;
    }
    return adopt(tensor, index, op.name.c_str());
  }

  void convert_back(c10::IValue& value) const {
    if (value.isTensor()) {
      value = from_host(value.toTensor());
    } else if (value.isTensorList()) {
      auto tensors = value.toTensorVector();
      for (auto& tensor : tensors) tensor = from_host(tensor);
      value = c10::List<at::Tensor>(std::move(tensors));
    }
  }
};

// What was computed in a rehearsal is known.
template <class AllWritten>
void know_results(const Operator& op, const AllWritten& written, const c10::Stack& stack) {
  for (const auto& pair : written) set_known(pair.view, true);
  for (size_t i = stack.size() - op.handle.schema().returns().size(); i < stack.size(); ++i) {
    if (stack[i].isTensor()) set_known(stack[i].toTensor(), true);
    if (!stack[i].isTensorList()) continue;
    for (const at::Tensor& tensor : stack[i].toTensorVector()) set_known(tensor, true);
  }
}

// A call on its way to the tape: what it was given, before results take its place on the stack.
class Taped {
 public:
  Taped(const Operator& op, int index, const c10::Stack& stack) : op_(op), index_(index) {
    if (!taping()) return;
    on_ = true;
    key_ = sign(op, stack).key;
    arguments_.assign(stack.end() - static_cast<ptrdiff_t>(op.writes.size()), stack.end());
  }

  template <class AllWritten>
  void note(const AllWritten& written, const c10::Stack& stack) const {
    if (!on_) return;
    std::vector<at::Tensor> outputs;
    for (const auto& pair : written) outputs.push_back(pair.tensor);
    for (size_t i = stack.size() - op_.handle.schema().returns().size(); i < stack.size(); ++i) {
      if (stack[i].isTensor()) add(outputs, stack[i].toTensor());
      if (!stack[i].isTensorList()) continue;
      for (const at::Tensor& tensor : stack[i].toTensorVector()) add(outputs, tensor);
    }
    uint64_t key = key_;
    if (depends_on_values(op_)) {
      for (const auto& tensor : outputs) key = mix(key, tensor);
    }
    const auto number = signature_of(key, [&] { return describe(op_, arguments_, outputs); });
    offramp::note(Kind::kOp, index_, number, 0, 0);
  }

 private:
  static void add(std::vector<at::Tensor>& outputs, const at::Tensor& tensor) {
    for (const auto& other : outputs) {
      if (other.is_same(tensor)) return;
    }
    if (tensor.defined()) outputs.push_back(tensor);
  }

  const Operator& op_;
  int index_;
  bool on_{false};
  uint64_t key_{0};
  c10::Stack arguments_;
};

}  // namespace

void refuse_formats(uint64_t mask) { refused_formats = mask; }

std::array<std::atomic<int64_t>, 64>& format_counts() {
  static std::array<std::atomic<int64_t>, 64> counts{};
  return counts;
}

// Calls `op` in float32 (complex64) where its tensors are narrower, or whole numbers; false when
// none is.
bool run_widened(Operator& op, c10::DispatchKey host_key, c10::Stack* stack) {
  const auto wide = [&op](at::ScalarType type) {
    if (op.widens_integers) return c10::isIntegralType(type, false) ? at::kFloat : type;
    if (type == at::kHalf || (type == at::kBFloat16 && op.widens_bfloat16)) return at::kFloat;
    return type == at::kComplexHalf ? at::kComplexFloat : type;
  };
  std::optional<at::ScalarType> narrow;
  for (size_t i = stack->size() - op.writes.size(); i < stack->size(); ++i) {
    auto& value = (*stack)[i];
    if (!value.isTensor() || !value.toTensor().defined()) continue;
    const auto type = value.toTensor().scalar_type();
    if (wide(type) == type) continue;
    narrow = type;
    value = value.toTensor().to(wide(type));
  }
  if (!narrow) return false;
  run_on_host(op, host_key, stack);
  const size_t results = op.handle.schema().returns().size();
  for (size_t i = stack->size() - results; i < stack->size(); ++i) {
    const auto& made = (*stack)[i].toTensor();
    if (made.scalar_type() == at::kFloat) {
      (*stack)[i] = made.to(*narrow == at::kComplexHalf ? at::kHalf : *narrow);
    } else if (made.scalar_type() == at::kComplexFloat) {
      (*stack)[i] = made.to(at::kComplexHalf);
    }
  }
  return true;
}

void run_on_host(Operator& op, c10::DispatchKey host_key, c10::Stack* stack) {
  require(op);
  if ((op.widens || op.widens_integers) && run_widened(op, host_key, stack)) return;
  follow_threads();
  op.calls.fetch_add(1, std::memory_order_relaxed);
  const size_t begin = stack->size() - op.writes.size();
  Call call{op};
  for (; call.position < op.writes.size(); ++call.position) {
    call.convert((*stack)[begin + call.position]);
  }
  if (call.index < 0) call.index = current_device();
  if (call.host_tensor && (!op.mixes_devices || (call.host_first && !op.copies))) {
    for (call.position = 0; call.position + 1 < op.writes.size(); ++call.position) {
      const auto& value = (*stack)[begin + call.position];
      if (value.isTensor() || value.isTensorList()) break;
    }
    call.refuse_mix(c10::Device(c10::kCPU));
  }
  const Taped taped(op, call.index, *stack);
  if (!rehearsing() || !run_shapes(op, call.index, stack)) {
    std::optional<Draws> draws;
    if (op.generator >= 0) {
      auto& given = (*stack)[begin + static_cast<size_t>(op.generator)];
      draws.emplace(given.isNone() ? default_generator(call.index) : given.toGenerator());
      given = draws->host();
    }
    std::optional<SeedScope> seeds;
    if (op.draws_unasked) seeds.emplace(call.index);
    const ChargeScope charge(call.index, op.name.c_str());
    align_causal_mask(op, stack);
    const bool own = arithmetic().on && host_key == c10::DispatchKey::CPU;
    if (!own || !compute_as_chip(op, call.index, stack)) {
      op.handle.redispatchBoxed(c10::DispatchKeySet(host_key), stack);
    }
    if (rehearsing()) know_results(op, call.written, *stack);
  }
  for (const auto& pair : call.written) follow(pair.tensor, pair.view);
  const size_t results = op.handle.schema().returns().size();
  for (size_t i = 0; i < results; ++i) {
    if ((op.host_results >> i & 1) == 0) call.convert_back((*stack)[stack->size() - results + i]);
  }
  taped.note(call.written, *stack);
}

void run_unregistered(const c10::OperatorHandle& handle, c10::DispatchKey host_key,
                      c10::Stack* stack) {
  Operator& op = operator_for(handle);
  if (!handle.hasComputedKernelForDispatchKey(host_key)) {
    const auto reason = c10::str("the operator has no ", c10::toString(host_key),
                                 " kernel to compute its values with");
    refuse(op, reason,
           c10::str("Could not run '", op.name, "' on ", chip().name, " (virtual): ", reason,
                    ". An operator that only CUDA has does not carry over to other chips either; "
                    "use one that PyTorch has for the CPU too."));
  }
  run_on_host(op, host_key, stack);
}

}  // namespace offramp
