// Messages between the ranks of one rehearsal that are played: small whole numbers and bytes, by
// which programs steer, such as the shapes that a pipeline's stages tell each other. What models
// compute is not among them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>

namespace offramp {

// The folder in which players leave letters for each other; without one nothing is exchanged.
//
// A player that waits for rank 5 leaves `wanted-5`; one that has ended leaves `ended-<rank>`.
void share_letters(const std::string& folder);

// Where a message goes, as global ranks. Messages of one way arrive in their order.
struct Way {
  std::string group;
  int64_t from;
  int64_t to;
};

// Whether what a message holds is exchanged.
bool is_letter(const at::Tensor& tensor);

void post_letter(const Way& way, const at::Tensor& tensor);

// What waits for the next message of a way and puts it into `tensor`. Its values stay unknown where
// the sender did not know them, or has ended.
std::function<void()> letter_for(const Way& way, const at::Tensor& tensor);

}  // namespace offramp
