// The chip's random generators. As with CUDA's, a generator is a seed and an offset (16 bytes of
// state); every operator that draws takes what the offset gives and moves it on. The numbers are
// the same on every virtual chip.
#pragma once

#include <ATen/core/Generator.h>

namespace offramp {

const at::Generator& default_generator(int index);
at::Generator new_generator(int index);

// A CPU generator for one operator's draws, from one of the chip's; throws for a generator of
// another device.
at::Generator draw(const at::Generator& generator);

// While alive, CPU kernels that take no generator draw from the chip's default one.
class SeedScope {
 public:
  explicit SeedScope(int index);
  ~SeedScope();
  SeedScope(const SeedScope&) = delete;
  SeedScope& operator=(const SeedScope&) = delete;

 private:
  at::Generator host_;
};

}  // namespace offramp
