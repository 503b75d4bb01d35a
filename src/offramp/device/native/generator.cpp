#include "generator.h"

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GeneratorImpl.h>
#include <c10/util/Exception.h>

#include <array>
#include <mutex>

#include "chip.h"

namespace offramp {
namespace {

class ChipGenerator final : public c10::GeneratorImpl {
 public:
  ChipGenerator(int index, at::Generator host)
      : GeneratorImpl(device(index), c10::DispatchKeySet(dense_key())), host_(std::move(host)) {}

  void set_current_seed(uint64_t seed) override {
    host_.set_current_seed(seed);
    offset_ = 0;
  }
  void set_offset(uint64_t offset) override { offset_ = offset; }
  uint64_t get_offset() const override { return offset_; }
  uint64_t current_seed() const override { return host_.current_seed(); }
  uint64_t seed() override { return host_.seed(); }
  void set_state(const c10::TensorImpl& state) override {
    host_.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return host_.unsafeGetGeneratorImpl()->get_state();
  }
  const at::Generator& host() const { return host_; }

 private:
  ChipGenerator* clone_impl() const override {
    return new ChipGenerator(device().index(), host_.clone());
  }
  static c10::Device device(int index) { return offramp::device(index); }
  c10::Device device() const { return device_; }

  at::Generator host_;
  uint64_t offset_{0};
};

at::Generator make(int index) {
  return at::make_generator<ChipGenerator>(index, at::detail::createCPUGenerator());
}

std::mutex seed_mutex;

at::Generator& default_host_generator() {
  return const_cast<at::Generator&>(at::detail::getDefaultCPUGenerator());
}

}  // namespace

const at::Generator& default_generator(int index) {
  static std::array<at::Generator, kMaxDevices> generators;
  static std::once_flag once;
  std::call_once(once, [] {
    for (int i = 0; i < chip().count; ++i) generators[i] = make(i);
  });
  const int chosen = index < 0 ? current_device() : index;
  TORCH_CHECK(chosen < chip().count, "invalid device ordinal ", chosen, ": this process has ",
              chip().count, " of ", chip().name);
  return generators[chosen];
}

at::Generator new_generator(int index) { return make(index < 0 ? current_device() : index); }

at::Generator host_generator(const at::Generator& generator) {
  TORCH_CHECK(is_chip(generator.device()), "Expected a '", device(0).type(),
              "' device type for generator but found '", generator.device().type(), "'");
  return static_cast<ChipGenerator*>(generator.unsafeGetGeneratorImpl())->host();
}

// Kernels without a generator argument read the process's default CPU generator; it is exchanged
// for the time of the call, one call at a time.
SeedScope::SeedScope(int index) : host_(host_generator(default_generator(index))) {
  seed_mutex.lock();
  std::swap(default_host_generator(), host_);
}

SeedScope::~SeedScope() {
  std::swap(default_host_generator(), host_);
  seed_mutex.unlock();
}

}  // namespace offramp
