// Arguments of a boxed call by their names in the schema.
#pragma once

#include <ATen/core/ivalue.h>

#include <string_view>

#include "operators.h"

namespace offramp {

// None and what the schema does not have are null.
class Named {
 public:
  Named(const Operator& op, const c10::Stack& stack) : op_(op), stack_(stack) {}

  const c10::IValue* find(std::string_view name) const {
    const auto& arguments = op_.handle.schema().arguments();
    const size_t begin = stack_.size() - arguments.size();
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (arguments[i].name() == name && !stack_[begin + i].isNone()) return &stack_[begin + i];
    }
    return nullptr;
  }
  at::Tensor tensor(std::string_view name) const {
    const auto* found = find(name);
    return found == nullptr ? at::Tensor() : found->toTensor();
  }
  double number(std::string_view name) const {
    const auto* found = find(name);
    return found == nullptr ? 1.0 : found->toScalar().toDouble();
  }

 private:
  const Operator& op_;
  const c10::Stack& stack_;
};

}  // namespace offramp
