// What the bindings read of the chip's memory.
#pragma once

#include <functional>
#include <string>

#include "ledger.h"

namespace offramp {

Ledger& ledger(int index);

// `explain(device)` adds, at an out-of-memory, what the program itself knows of its tensors.
void explain_out_of_memory_with(std::function<std::string(int)> explain);

}  // namespace offramp
