// Running an operator of the chip by the CPU's kernel on the same memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <array>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "chip.h"

namespace torch {
class CppFunction;
class Library;
}  // namespace torch

namespace offramp {

enum class Work : uint8_t;  // arithmetic.h

// What is known of one operator before it is called.
struct Operator {
  explicit Operator(const c10::OperatorHandle& handle);

  c10::OperatorHandle handle;
  std::string name;           // "aten::add.Tensor"
  std::vector<bool> writes;   // per argument: does the operator change it?
  int generator{-1};          // position of the Generator argument
  bool draws_unasked{false};  // random, yet without a Generator argument
  bool moves_only{false};     // moves data: allowed in every format
  bool mixes_devices{false};  // takes CPU tensors beside the chip's
  bool copies{false};         // ... even as the first argument
  bool widens{false};         // float16 is computed in float32
  bool widens_bfloat16{false};
  bool widens_integers{false};  // and nothing else
  bool is_fused{false};         // stands for a compiler's kernel: shapes only
  bool asks_gradient{false};    // its kernel keeps more when an argument requires a gradient
  Work work{};                  // what the chip's arithmetic changes of it
  uint32_t host_results{0};     // one bit a result that stays on the CPU
  std::string missing;          // why this chip does not have it; empty when it does
  std::atomic<int64_t> calls{0};
  std::atomic<int64_t> refusals{0};
  std::string refused_because;  // the last refusal's reason; read it by `refusals()`
};

struct Refusal {
  std::string op;
  std::string reason;
  int64_t count;
};

Operator& operator_for(const c10::OperatorHandle& handle);
Operator& operator_named(const char* name, const char* overload = "");
std::vector<Operator*> operators_called();
std::vector<Refusal> refusals();
// Counts a refusal of `op` for `reason`, a short clause, and raises NotImplementedError.
[[noreturn]] void refuse(Operator& op, const std::string& reason, const std::string& message);
// Refuses an operator that this chip does not have.
void require(Operator& op);

// The main thread's number of compute threads, and taking it over in one of autograd's.
void choose_threads(int count);
void follow_threads();

// Calls `op` by the kernel of `host_key` (CPU, SparseCPU, ...) on the stack's arguments.
void run_on_host(Operator& op, c10::DispatchKey host_key, c10::Stack* stack);
// The same for operators that were defined later, such as a package's own.
void run_unregistered(const c10::OperatorHandle& handle, c10::DispatchKey host_key,
                      c10::Stack* stack);

// Formats the chip lacks, as a mask over ScalarType, and the name in messages.
void refuse_formats(uint64_t mask);
void declare_missing(const std::string& op_name, const std::string& reason);
// How often an operator's first tensor had each ScalarType.
std::array<std::atomic<int64_t>, 64>& format_counts();

// The same memory as a CPU tensor, dense or sparse.
at::Tensor host_view(const at::Tensor& tensor);
// After a kernel wrote `view`, gives `tensor` the view's sizes and, where it grew, its memory.
void follow(const at::Tensor& tensor, const at::Tensor& view);
// A tensor that a CPU kernel made, as one of chip `index`. No copy when the chip owns its memory.
at::Tensor adopt(const at::Tensor& tensor, int index, const char* label);

// cover.cpp: kernels of CUDA that PyTorch, or a library that `load` loads, has for the chip's key.
void cover_torch();
void cover_library(const std::function<void()>& load);
// Registers `kernel(op)` at `key` for every operator of ATen that `wanted` says.
void register_for_aten(c10::DispatchKey key,
                       const std::function<bool(const c10::OperatorHandle&)>& wanted,
                       const std::function<torch::CppFunction(const c10::OperatorHandle&)>& kernel);
// Registers `run_on_host` for every operator that the CPU has and this chip needs.
void register_boxed(c10::DispatchKey key, c10::DispatchKey host_key);
// ops.cpp, composed.cpp and attention.cpp: the operators written by hand.
void register_own_operators();
void register_composed_operators(torch::Library& library);
void register_attention(torch::Library& library);
// Just before the CPU's kernel runs on `stack`: gives it the mask that it needs to see what CUDA's
// flash attention sees, where a causal call has other queries than keys.
void align_causal_mask(const Operator& op, c10::Stack* stack);

}  // namespace offramp
