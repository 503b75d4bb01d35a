// What the native parts share: which chip this process plays, and where its tensors belong.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/Device.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

namespace offramp {

constexpr int kMaxDevices = 64;

// The chip as the native core sees it. Filled once by `open`, before any tensor exists.
struct Chip {
  std::string name;   // catalogue name, for messages
  std::string brand;  // what messages call the device: "CUDA", "NPU", ...
  c10::DeviceType type{c10::DeviceType::CUDA};
  int count{0};
  uint64_t memory_bytes{0};
  bool is_open{false};
};

Chip& chip();

inline c10::Device device(int index) { return {chip().type, static_cast<c10::DeviceIndex>(index)}; }
inline bool is_chip(const c10::Device& d) { return d.type() == chip().type; }
inline c10::DispatchKey dense_key() {
  return chip().type == c10::DeviceType::CUDA ? c10::DispatchKey::CUDA
                                              : c10::DispatchKey::PrivateUse1;
}
inline c10::DispatchKey sparse_key() {
  return chip().type == c10::DeviceType::CUDA ? c10::DispatchKey::SparseCUDA
                                              : c10::DispatchKey::SparsePrivateUse1;
}
inline c10::DispatchKey sparse_csr_key() {
  return chip().type == c10::DeviceType::CUDA ? c10::DispatchKey::SparseCsrCUDA
                                              : c10::DispatchKey::SparseCsrPrivateUse1;
}
inline c10::DispatchKey nested_key() {
  return chip().type == c10::DeviceType::CUDA ? c10::DispatchKey::NestedTensorCUDA
                                              : c10::DispatchKey::NestedTensorPrivateUse1;
}

// guard.cpp: the calling thread's device and stream.
int current_device();
void set_current_device(int index);
int64_t current_stream_id(int index);
double elapsed_ms(uintptr_t start_event, uintptr_t end_event);
void register_guard();
bool in_forked_child();

// allocator.cpp: memory of the chip, backed by the host's.
c10::Allocator* allocator();
void register_allocator();
bool owns(const c10::DataPtr& data);  // was it made by this chip's allocator?
c10::DataPtr allocate_on(int index, size_t bytes);

// While alive, memory that CPU kernels ask for on this thread comes from chip `index` and is
// attributed to `label`, an operator's name with static lifetime.
class ChargeScope {
 public:
  ChargeScope(int index, const char* label);
  ~ChargeScope();
  ChargeScope(const ChargeScope&) = delete;
  ChargeScope& operator=(const ChargeScope&) = delete;

 private:
  int previous_index_;
  const char* previous_label_;
};

// hooks.cpp: what ATen asks of an accelerator.
void register_hooks();

// works.cpp: returns when every collective that has begun in this process has ended.
void wait_for_works();

// autocast.cpp
void register_autocast();

}  // namespace offramp
