// How this chip computes, where that is known or set not to be the host's arithmetic.
//
// Operators come here as CPU views of the chip's memory, just before the CPU's kernel would run
// (run.cpp). Nothing of this is looked at while `on` is false. docs/arithmetic.md defines what each
// setting means to the bit.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "operators.h"
#include "sums.h"

namespace offramp {

constexpr int kMantissa = 23;  // stored bits of a float32's significand

enum class When : int { kNever = 0, kAlways = 1, kAllowed = 2 };  // allowed: by PyTorch's switch

// The format that float32 inputs of products are rounded to.
struct Reduced {
  When when{When::kNever};
  int bits{kMantissa};
  int products{1};       // of bfloat16 parts of the inputs: 1, 3, 6 or 9
  std::string variable;  // of the environment, and the value with which it turns this off
  std::string off;
};

struct Arithmetic {
  bool on{false};  // whether anything below is set
  Reduced matmul, convolution;
  bool attention_too{false};  // `matmul` holds for fused attention as well
  Narrow accumulate{Narrow::kFloat};
  int64_t chunk{0};    // products summed in `accumulate` before float32 takes them; 0: all of them
  int64_t split_k{0};  // 0: in the host's order
  bool flush_to_zero{false};
  bool stochastic{false};
  uint64_t seed{0};
  int exp_ulp{-1};  // -1: the host's exponentials

  bool sums() const { return accumulate != Narrow::kFloat || split_k > 0; }
};

Arithmetic& arithmetic();

// What an operator is to the settings.
enum class Work : uint8_t { kOther, kProduct, kConvolution, kAttention, kExponential, kElements };
Work work_of(const c10::OperatorHandle& handle, const std::string& name);

// Gives the results of `op` on the CPU views on `stack`, results charged to chip `index`; false
// where the CPU's kernel is to run on what is now on the stack.
bool compute_as_chip(Operator& op, int index, c10::Stack* stack);
// A copy that changes the format, rounded or flushed as the chip does; false where it needs none.
bool copy_as_chip(const at::Tensor& to, const at::Tensor& from);

// Settings met at operators: applied there, or left to the host.
void met(const char* setting, const Operator& op, bool applied = true);
std::vector<std::tuple<std::string, std::string, bool, int64_t>> settings_met();

// The format in force now for float32 products of that kind; null where it is IEEE's.
const Reduced* reduced_now(const Reduced& format, bool convolution);

// products.cpp. `a` [batch, m, k] and `b` [batch, k, n] of one format; the result is float32 on the
// host, not yet rounded to a 16-bit format. `format` is for float32 inputs and may be null.
at::Tensor product(const at::Tensor& a, const at::Tensor& b, const Reduced* format);
bool compute_product(Operator& op, int index, c10::Stack* stack);
at::Tensor rounded_to(const at::Tensor& tensor, int bits);  // significands of float32, nearest even

// rounding.cpp
void restart_rounding();  // stochastic rounding draws its numbers from the first again
at::Tensor flushed(const at::Tensor& tensor);  // without subnormal numbers; itself if it has none
void flush_(const at::Tensor& tensor);
// Writes float32 `from` into `to`, of a 16-bit format, with the chip's rounding.
void round_into(const at::Tensor& to, const at::Tensor& from);
// `values` (float32) as a result of `type`, in memory of chip `index`, or in `out` where there is.
at::Tensor finish(const Operator& op, int index, const at::Tensor& values, at::ScalarType type,
                  const at::Tensor& out);

// exponentials.cpp
at::Tensor exponential(const at::Tensor& x);  // of float32
bool compute_exponential(Operator& op, int index, c10::Stack* stack);

// attending.cpp: the fused attention kernels, by `product` and `exponential`.
bool compute_attention(Operator& op, int index, c10::Stack* stack);

}  // namespace offramp
