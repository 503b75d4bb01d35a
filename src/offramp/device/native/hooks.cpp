// What ATen asks of an accelerator: pinned memory, generators, the current device.
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/Storage.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

#include "chip.h"
#include "generator.h"
#include "rehearse.h"
#include "tape.h"

namespace offramp {
namespace {

// Page-locked memory is ordinary memory here; which addresses asked for it is remembered.
class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    auto memory = c10::GetCPUAllocator()->allocate(bytes);
    if (bytes == 0) return memory;
    const auto start = reinterpret_cast<uintptr_t>(memory.get());
    auto* kept = new Kept{this, start, std::move(memory)};
    const std::lock_guard<std::mutex> lock(mutex_);
    ranges_[start] = bytes;
    return {kept->memory.get(), kept, &release, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
  bool contains(const void* data) {
    const auto address = reinterpret_cast<uintptr_t>(data);
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto after = ranges_.upper_bound(address);
    if (after == ranges_.begin()) return false;
    const auto& [start, bytes] = *std::prev(after);
    return address < start + bytes;
  }

 private:
  struct Kept {
    PinnedAllocator* owner;
    uintptr_t start;
    c10::DataPtr memory;
  };
  static void release(void* context) {
    auto* kept = static_cast<Kept*>(context);
    {
      const std::lock_guard<std::mutex> lock(kept->owner->mutex_);
      kept->owner->ranges_.erase(kept->start);
    }
    delete kept;
  }
  std::mutex mutex_;
  std::map<uintptr_t, size_t> ranges_;
};

PinnedAllocator& pinned() {
  static auto* allocator = new PinnedAllocator;  // outlives every tensor
  return *allocator;
}

// The answers are the same whichever interface they are asked through.
template <class Interface>
class Hooks : public Interface {
 public:
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return chip().count > 0; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override {
    return static_cast<c10::DeviceIndex>(chip().count);
  }
  void setCurrentDevice(c10::DeviceIndex index) const override { set_current_device(index); }
  c10::DeviceIndex getCurrentDevice() const override {
    return static_cast<c10::DeviceIndex>(current_device());
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    const auto old = getCurrentDevice();
    set_current_device(index);
    return old;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return exchangeDevice(index);
  }
  bool isPinnedPtr(const void* data) const override { return pinned().contains(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned(); }
  c10::Device getDeviceFromPtr(void*) const override { return device(current_device()); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override {
    return default_generator(index);
  }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override {
    return new_generator(index);
  }
};

class CudaHooks final : public Hooks<at::CUDAHooksInterface> {
 public:
  bool hasCUDA() const override { return true; }
  c10::DeviceIndex current_device() const override { return getCurrentDevice(); }
  int getNumGPUs() const override { return chip().count; }
  c10::Allocator* getCUDADeviceAllocator() const override { return allocator(); }
  void deviceSynchronize(c10::DeviceIndex) const override {}
};

class PrivateHooks final : public Hooks<at::PrivateUse1HooksInterface> {
 public:
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto* impl = storage.unsafeGetStorageImpl();
    const int index = storage.device().index();
    auto memory = allocate_on(index, bytes);
    note(Kind::kCategory, index, kCommunication, block_serial(memory.get()), 0);
    const size_t kept = std::min(bytes, impl->nbytes());
    move_bytes(memory.get(), impl->data(), kept);
    impl->set_data_ptr_noswap(std::move(memory));
    impl->set_nbytes(bytes);
  }
};

}  // namespace

// ATen creates its CUDA hooks once, at the first question, which `import torch` itself asks; on
// a build without CUDA that object answers "no CUDA" for good. Ours takes its place: same size,
// same base, no data members, reached through the vtable only.
void register_hooks() {
  if (chip().type == c10::DeviceType::CUDA) {
    auto* slot = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
    static_assert(sizeof(CudaHooks) == sizeof(at::CUDAHooksInterface));
    new (static_cast<void*>(slot)) CudaHooks;
  } else {
    static PrivateHooks hooks;
    at::RegisterPrivateUse1HooksInterface(&hooks);
  }
  at::globalContext().lazyInitDevice(chip().type);  // memory is pinned for no device before that
}

}  // namespace offramp
