// One call of an operator as costs and the tape know it: its name, its tensors' shapes and formats,
// its other arguments.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <string>
#include <vector>

#include "operators.h"

namespace offramp {

// A key of the call on `stack`, equal for equal calls; `exact` is false where an argument could not
// be taken into it.
struct Signature {
  uint64_t key{0};
  bool exact{true};
};

Signature sign(const Operator& op, const c10::Stack& stack);
uint64_t mix(uint64_t key, uint64_t value);
uint64_t mix(uint64_t key, const at::Tensor& tensor);

// The call as JSON, with what it gave: docs/tape.md has the form.
std::string describe(const Operator& op, const c10::Stack& arguments,
                     const std::vector<at::Tensor>& outputs);
std::string quoted(const std::string& text);
const char* dtype_name(c10::ScalarType type);  // as torch spells it: "bfloat16"

}  // namespace offramp
