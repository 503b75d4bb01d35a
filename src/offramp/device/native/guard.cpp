// The chip's devices, streams and events as c10 sees them. Work runs at once and in order, so a
// stream never has anything pending; ids and times are kept so that programs read sense.
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>
#include <pthread.h>

#include <array>
#include <atomic>
#include <chrono>

#include "chip.h"
#include "tape.h"

namespace offramp {
namespace {

using Clock = std::chrono::steady_clock;

struct Event {
  Clock::time_point time;
  uint64_t serial{0};  // on the tape, new with each recording
  bool timed{false};
};

thread_local int tls_device = 0;
thread_local std::array<int64_t, kMaxDevices> tls_streams{};
std::atomic<int64_t> next_stream{1};
bool forked = false;

void check_index(int index) {
  TORCH_CHECK(index >= 0 && index < chip().count, chip().brand,
              " error: invalid device ordinal: ", "device ", index,
              " was asked for, and this process has ", chip().count, " of ", chip().name, " (0 to ",
              chip().count - 1, "). Start it with --chip ", chip().name, ":COUNT for more.");
}

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return chip().type; }
  c10::Device exchangeDevice(c10::Device d) const override {
    const auto old = getDevice();
    setDevice(d);
    return old;
  }
  c10::Device getDevice() const override { return offramp::device(tls_device); }
  void setDevice(c10::Device d) const override { set_current_device(d.index()); }
  void uncheckedSetDevice(c10::Device d) const noexcept override {
    if (d.index() >= 0) tls_device = d.index();
  }
  c10::Stream getStream(c10::Device d) const override { return stream(d, current(d)); }
  c10::Stream getDefaultStream(c10::Device d) const override { return stream(d, 0); }
  c10::Stream getStreamFromGlobalPool(c10::Device d, bool) const override {
    return stream(d, next_stream++);
  }
  c10::Stream getNewStream(c10::Device d, int) const override { return stream(d, next_stream++); }
  c10::Stream exchangeStream(c10::Stream s) const override {
    auto& slot = tls_streams[index_of(s.device())];
    const auto old = slot;
    slot = s.id();
    return stream(s.device(), old);
  }
  void* getStreamNativeHandle(const c10::Stream s) const override {
    return reinterpret_cast<void*>(static_cast<intptr_t>(s.id()));
  }
  void record(void** event, const c10::Stream& s, const c10::DeviceIndex,
              const c10::EventFlag flag) const override {
    static std::atomic<uint64_t> recordings{0};
    if (*event == nullptr) *event = new Event;
    auto* recorded = static_cast<Event*>(*event);
    recorded->time = Clock::now();
    recorded->serial = ++recordings;
    note_on(s.id(), Kind::kRecord, index_of(s.device()), 0, recorded->serial, 0);
    recorded->timed = flag == c10::EventFlag::BACKEND_DEFAULT;
  }
  void block(void* event, const c10::Stream& s) const override {
    if (event == nullptr) return;
    note_on(s.id(), Kind::kWait, index_of(s.device()), 0, static_cast<Event*>(event)->serial, 0);
  }
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<Event*>(event);
  }
  void synchronizeEvent(void* event) const override {
    if (event == nullptr) return;
    note(Kind::kSyncEvent, tls_device, 0, static_cast<Event*>(event)->serial, 0);
  }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream& s) const override {
    note_on(s.id(), Kind::kSyncStream, index_of(s.device()), 0, 0, 0);
  }
  void synchronizeDevice(const c10::DeviceIndex index) const override {
    note(Kind::kSyncDevice, index < 0 ? tls_device : index, 0, 0, 0);
    wait_for_works();
  }
  c10::DeviceIndex deviceCount() const noexcept override {
    return static_cast<c10::DeviceIndex>(chip().count);
  }
  c10::DeviceCapability getDeviceCapability(c10::Device) const override { return {}; }
  double elapsedTime(void* start, void* end, const c10::DeviceIndex) const override {
    TORCH_CHECK(start != nullptr && end != nullptr,
                "Both events must be recorded before calculating elapsed time.");
    const auto* from = static_cast<Event*>(start);
    const auto* to = static_cast<Event*>(end);
    TORCH_CHECK(from->timed && to->timed,
                "Both events must be created with argument 'enable_timing=True'.");
    if (chip_seconds) return (chip_seconds(to->serial) - chip_seconds(from->serial)) * 1e3;
    return std::chrono::duration<double, std::milli>(to->time - from->time).count();
  }

 private:
  static int index_of(c10::Device d) { return d.index() < 0 ? tls_device : d.index(); }
  static int64_t current(c10::Device d) { return tls_streams[index_of(d)]; }
  static c10::Stream stream(c10::Device d, int64_t id) {
    return c10::Stream(c10::Stream::UNSAFE, offramp::device(index_of(d)), id);
  }
};

}  // namespace

Chip& chip() {
  static Chip instance;
  return instance;
}

double elapsed_ms(uintptr_t start_event, uintptr_t end_event) {
  return Guard().elapsedTime(reinterpret_cast<void*>(start_event),
                             reinterpret_cast<void*>(end_event), 0);
}

int current_device() { return tls_device; }

void set_current_device(int index) {
  if (index < 0) return;
  check_index(index);
  tls_device = index;
}

int64_t current_stream_id(int index) { return tls_streams[index]; }

bool in_forked_child() { return forked; }

void register_guard() {
  static const Guard guard;  // c10 keeps a pointer to it for the life of the process
  const c10::impl::DeviceGuardImplRegistrar registrar(chip().type, &guard);
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
}

}  // namespace offramp
