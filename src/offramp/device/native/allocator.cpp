// The chip's allocator: a caching ledger a device, on host memory.
#include "allocator.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <sstream>

#include "chip.h"

namespace offramp {
namespace {

thread_local int tls_charged = -1;
thread_local const char* tls_label = "memory asked for directly";
std::array<Ledger, kMaxDevices> ledgers;
std::function<std::string(int)> explain_holdings;

// Memory is its own context, as kernel libraries want that ask for it without a DataPtr.
void release(void* data) {
  if (data == nullptr) return;
  Block* block = block_at(data);
  ledgers[block->device].release(block);
}

c10::DeleterFnPtr release_to_host = nullptr;

void release_to_owner(void* data) {
  block_at(data) != nullptr ? release(data) : release_to_host(data);
}

std::string mib(uint64_t bytes) {
  std::ostringstream text;
  text.precision(2);
  const bool large = bytes >= (1ULL << 30);
  text << std::fixed << static_cast<double>(bytes) / static_cast<double>(large ? 1 << 30 : 1 << 20)
       << (large ? " GiB" : " MiB");
  return text.str();
}

// CUDA's wording, so that programs which search it find what they look for, then what is held.
[[noreturn]] void throw_out_of_memory(int index, size_t bytes) {
  auto& ledger = ledgers[index];
  const auto stats = ledger.stats();
  const auto reserved = static_cast<uint64_t>(stats.reserved_bytes[0].current);
  const auto allocated = static_cast<uint64_t>(stats.allocated_bytes[0].current);
  const auto capacity = ledger.capacity_bytes();
  std::ostringstream text;
  text << chip().brand << " out of memory. Tried to allocate " << mib(bytes) << ". GPU " << index
       << " has a total capacity of " << mib(capacity) << " of which "
       << mib(capacity > reserved ? capacity - reserved : 0) << " is free. ";
  if (ledger.limit_bytes() < capacity) text << mib(ledger.limit_bytes()) << " allowed; ";
  text << "Process " << getpid() << " has " << mib(reserved) << " memory in use. Of the allocated "
       << "memory " << mib(allocated) << " is allocated by PyTorch, and "
       << mib(reserved - allocated) << " is reserved by PyTorch but unallocated. (virtual "
       << chip().name << ")\nWhat holds the memory, by the operator that made it:";
  int rows = 0;
  for (const auto& holding : ledger.holdings()) {
    if (++rows > 6) break;
    text << "\n  " << mib(static_cast<uint64_t>(holding.bytes)) << " in " << holding.blocks
         << (holding.blocks == 1 ? " block: " : " blocks: ") << holding.origin;
  }
  if (explain_holdings) text << explain_holdings(index);
  TORCH_CHECK_WITH(OutOfMemoryError, false, text.str());
  __builtin_unreachable();
}

Block* obtain(int index, size_t bytes) {
  auto* block = ledgers[index].allocate(bytes, current_stream_id(index), tls_label);
  if (block == nullptr) throw_out_of_memory(index, bytes);
  return block;
}

class Allocator final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override { return allocate_on(current_device(), bytes); }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
  bool initialized() override { return chip().is_open; }
  void emptyCache(c10::MempoolId_t) override {
    for (int i = 0; i < chip().count; ++i) ledgers[i].empty_cache();
  }
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex d) override {
    return ledger(d).stats();
  }
  void resetAccumulatedStats(c10::DeviceIndex d) override { ledger(d).reset_accumulated(); }
  void resetPeakStats(c10::DeviceIndex d) override { ledger(d).reset_peaks(); }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex d) override {
    auto& chosen = ledger(d);
    const auto reserved = static_cast<size_t>(chosen.stats().reserved_bytes[0].current);
    const auto capacity = chosen.capacity_bytes();
    return {capacity > reserved ? capacity - reserved : 0, capacity};
  }
};

// Stands in front of the CPU allocator: inside a ChargeScope memory comes from the chip, so that
// what a CPU kernel returns, and what it needs on the way, is the chip's from the start.
class HostAllocator final : public c10::Allocator {
 public:
  explicit HostAllocator(c10::Allocator* host) : host_(host) {
    release_to_host = host->raw_deleter();
  }
  c10::DataPtr allocate(size_t bytes) override {
    if (tls_charged < 0) return host_->allocate(bytes);
    if (bytes == 0) return {nullptr, c10::Device(c10::kCPU)};
    char* data = obtain(tls_charged, bytes)->data;
    return {data, data, &release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release_to_owner; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    host_->copy_data(to, from, bytes);
  }

 private:
  c10::Allocator* host_;
};

Allocator& instance() {
  static Allocator allocator;
  return allocator;
}

}  // namespace

c10::Allocator* allocator() { return &instance(); }

Ledger& ledger(int index) {
  TORCH_CHECK(index >= 0 && index < chip().count, "invalid device ordinal ", index);
  return ledgers[index];
}

bool owns(const c10::DataPtr& data) { return data.get_deleter() == &release; }

c10::DataPtr allocate_on(int index, size_t bytes) {
  if (bytes == 0) return {nullptr, nullptr, &release, device(index)};
  char* data = obtain(index, bytes)->data;
  return {data, data, &release, device(index)};
}

void explain_out_of_memory_with(std::function<std::string(int)> explain) {
  explain_holdings = std::move(explain);
}

ChargeScope::ChargeScope(int index, const char* label)
    : previous_index_(tls_charged), previous_label_(tls_label) {
  tls_charged = index;
  tls_label = label;
}

ChargeScope::~ChargeScope() {
  tls_charged = previous_index_;
  tls_label = previous_label_;
}

void register_allocator() {
  for (int i = 0; i < chip().count; ++i) ledgers[i].open(i, chip().memory_bytes);
  constexpr uint8_t kAboveDefaults = 2;
  c10::SetAllocator(chip().type, &instance(), kAboveDefaults);
  static HostAllocator host(c10::GetCPUAllocator());
  c10::SetCPUAllocator(&host, kAboveDefaults);
}

}  // namespace offramp
