// Answers to what depends on values that a rehearsal does not have: plausible, and counted.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <string>
#include <vector>

#include "operators.h"

namespace offramp {

void count_declared(const std::string& what);

// Whether the sizes of what `op` gives depend on the values that it is given.
bool depends_on_values(const Operator& op);

// Replaces masks among the indices on `stack` by as many indices as they are declared to keep.
void declare_arguments(const Operator& op, c10::Stack* stack);

// Gives the results of an operator whose sizes depend on unknown values; false for any other.
bool declare_results(Operator& op, int index, c10::Stack* stack);

// Fills results that programs steer by: choices of experts are balanced, orders are as they came.
void declare_values(const Operator& op, const std::vector<at::Tensor>& given, c10::Stack* stack);

}  // namespace offramp
