// The chip's random generators. As with CUDA's, a generator is a seed and an offset (16 bytes of
// state); every operator that draws takes what the offset gives and moves it on. The numbers are
// the same on every virtual chip.
#pragma once

#include <ATen/core/Generator.h>

namespace offramp {

const at::Generator& default_generator(int index);
at::Generator new_generator(int index);

// One operator's draws from a generator of the chip; throws for one of another device. The offset
// moves on when the operator has drawn, which some do only for some arguments.
class Draws {
 public:
  explicit Draws(at::Generator generator);
  ~Draws();
  Draws(const Draws&) = delete;
  Draws& operator=(const Draws&) = delete;
  // What the CPU's kernel takes its numbers from.
  const at::Generator& host() const { return host_; }

 private:
  at::Generator chip_;
  uint64_t offset_;
  at::Generator host_;
};

// While alive, CPU kernels that take no generator draw from the chip's default one.
class SeedScope {
 public:
  explicit SeedScope(int index);
  ~SeedScope();
  SeedScope(const SeedScope&) = delete;
  SeedScope& operator=(const SeedScope&) = delete;

 private:
  Draws draws_;
  at::Generator replaced_;
};

}  // namespace offramp
