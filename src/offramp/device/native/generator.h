// The chip's random generators. Each wraps a CPU generator, so that one seed gives one stream on
// every virtual chip, whichever it is.
#pragma once

#include <ATen/core/Generator.h>

namespace offramp {

const at::Generator& default_generator(int index);
at::Generator new_generator(int index);

// The CPU generator behind one of the chip's; throws for a generator of another device.
at::Generator host_generator(const at::Generator& generator);

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
