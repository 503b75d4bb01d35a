// CUDA's names on a machine whose device is PyTorch's private one (`npu`, `musa`, ...).
//
// Nothing here knows the virtual chip: what is asked of CUDA is passed to whatever registered
// itself for PrivateUse1, be it offramp's own device or a maker's.
#pragma once

#include <c10/core/Device.h>

namespace offramp {

constexpr auto kCuda = c10::DeviceType::CUDA;
constexpr auto kPrivate = c10::DeviceType::PrivateUse1;

// A device called `cuda` as the private one; any other as it is.
inline c10::Device routed(c10::Device d) {
  return d.type() == kCuda ? c10::Device(kPrivate, d.index()) : d;
}

// route.cpp: operators, device guard and hooks of CUDA lead to PrivateUse1. Once per process.
void register_routes();

// spelling.cpp: which of the two names Python reads on the private device's tensors.
enum class Spelling : int {
  kPlain = 0,      // the device's own name; CUDA's is not in use
  kUndecided = 1,  // nothing was placed yet; reads `cuda`
  kCuda = 2,
  kOwn = 3,  // the device's own name; CUDA's still leads to it
};

void install_spelling();
Spelling spelling();
void spell(Spelling chosen);
// Chooses when nothing was chosen yet.
void decide(Spelling chosen);

}  // namespace offramp
