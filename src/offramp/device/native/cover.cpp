// A CUDA build of PyTorch, and of packages beside it, brings kernels for NVIDIA's hardware at the
// keys of the chip's tensors. They never run: each gives way to what a build without CUDA would do.
#include <ATen/core/dispatch/Dispatcher.h>

#include <list>
#include <memory>
#include <string>
#include <unordered_set>
#include <utility>

#include "operators.h"

namespace offramp {
namespace {

using c10::DispatchKey;
using Names = std::unordered_set<std::string>;

// A device that nothing is registered for: its table holds what PyTorch composes for any device.
constexpr auto kVacant = DispatchKey::PrivateUse3;

struct Cover final : c10::OperatorKernel {
  explicit Cover(DispatchKey host_key) : host_key(host_key) {}
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, c10::Stack* stack) {
    if (op.hasComputedKernelForDispatchKey(kVacant)) {
      op.redispatchBoxed(c10::DispatchKeySet(kVacant), stack);
      return;
    }
    TORCH_CHECK_NOT_IMPLEMENTED(host_key != DispatchKey::QuantizedCPU, "Could not run '",
                                op.operator_name(), "' on ", chip().name,
                                " (virtual): it has no quantized tensors.");
    run_unregistered(op, host_key, stack);
  }
  DispatchKey host_key;
};

void cover(const c10::OperatorHandle& op, DispatchKey key, DispatchKey host_key) {
  static auto* kept = new std::list<c10::RegistrationHandleRAII>;  // for the life of the process
  auto kernel = c10::KernelFunction::makeFromBoxedFunctor(std::make_unique<Cover>(host_key));
  kept->push_back(c10::Dispatcher::singleton().registerImpl(
      op.operator_name(), key, std::move(kernel), std::nullopt, nullptr, "offramp"));
}

void cover(const c10::OperatorHandle& op) {
  const std::pair<DispatchKey, DispatchKey> keys[] = {
      {dense_key(), DispatchKey::CPU},
      {sparse_key(), DispatchKey::SparseCPU},
      {sparse_csr_key(), DispatchKey::SparseCsrCPU},
      {nested_key(), DispatchKey::NestedTensorCPU},
      {DispatchKey::QuantizedCUDA, DispatchKey::QuantizedCPU}};
  for (const auto& [key, host_key] : keys) {
    if (!op.hasKernelForDispatchKey(key)) continue;
    cover(op, key, host_key);
    // A composed operator is differentiated through its parts, unless its device has a kernel.
    if (op.hasKernelForDispatchKey(DispatchKey::CompositeImplicitAutograd)) {
      cover(op, c10::getAutogradKeyFromBackend(c10::toBackendComponent(key)), host_key);
    }
  }
}

}  // namespace

void cover_torch() {
  if (chip().type != c10::kCUDA) return;  // tensors of own-name chips are at keys of their own
  // PyTorch's kernels in `c10d` are for any device; kernels elsewhere may be the program's own.
  const Names namespaces{"aten",         "_native",   "inductor_prims",
                         "quantization", "quantized", "symm_mem"};
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (namespaces.count(std::string(name.getNamespace().value_or(""))) == 0) continue;
    if (const auto op = dispatcher.findSchema(name)) cover(*op);
  }
}

void cover_library(const std::function<void()>& load) {
  auto& dispatcher = c10::Dispatcher::singleton();
  Names before;
  for (const auto& name : dispatcher.getAllOpNames()) before.insert(c10::toString(name));
  load();
  if (chip().type != c10::kCUDA) return;
  for (const auto& name : dispatcher.getAllOpNames()) {
    const auto op = dispatcher.findSchema(name);
    if (op && before.count(c10::toString(name)) == 0) cover(*op);
  }
}

}  // namespace offramp
