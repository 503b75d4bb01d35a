// Running operators without values: shapes, formats and memory are as they would be.
//
// Memory is address space that nobody writes. Small tensors whose values are known (made by the
// host, or by operators on such) are computed all the same, so that masks, positions and counters
// are real; the answers to questions about other values are declared, and counted.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "operators.h"

namespace offramp {

struct Rehearsal {
  bool on{false};
  size_t known_bytes{1 << 20};  // tensors up to this size are computed where their values are known
  double kept{1.0};             // the share of elements that a mask of unknown values keeps
};

Rehearsal& rehearsal();
inline bool rehearsing() { return rehearsal().on; }

// Up to which size tensors of a format keep values that are only moved. Python objects travel as
// bytes, and what they say must arrive: checkpoints of many ranks exchange megabytes of plans.
inline size_t moved_bytes(c10::ScalarType type) {
  constexpr size_t kObjects = 256;
  return rehearsal().known_bytes * (type == c10::ScalarType::Byte ? kObjects : 1);
}

// Whether the memory behind a tensor holds the values that the program would find there.
bool is_known(const at::Tensor& tensor);
bool is_known_at(const void* data);
void set_known(const at::Tensor& tensor, bool known);
void set_known(const std::vector<at::Tensor>& tensors, bool known);  // parts may make a whole

// The number on the tape of the block that holds `data`; 0 where there is none.
uint64_t block_serial(const void* data);

// Moves `bytes` of the chip's memory, or, where they hold no values, only that fact.
void move_bytes(void* to, const void* from, size_t bytes);

// Gives the results of `op` on the CPU views on `stack`, as tensors of chip `index`; false when it
// is to be computed instead.
bool run_shapes(Operator& op, int index, c10::Stack* stack);

at::Tensor& rehearse_copy(at::Tensor& self, const at::Tensor& source);
c10::Scalar declared_value(const at::Tensor& self);

// What was asked of values that are not there, and how often.
std::map<std::string, int64_t> declared_answers();

}  // namespace offramp
