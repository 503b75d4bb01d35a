// Operators, device guard and hooks of CUDA, led to PyTorch's private device.
#include "route.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/to_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "operators.h"

namespace offramp {
namespace {

template <class T>
using Maybe = std::optional<T>;

// Calls the operator again, with every device argument led to the private device.
void route(const c10::OperatorHandle& op, c10::Stack* stack) {
  decide(Spelling::kCuda);
  bool led = false;
  const size_t begin = stack->size() - op.schema().arguments().size();
  for (size_t i = begin; i < stack->size(); ++i) {
    auto& value = (*stack)[i];
    if (!value.isDevice() || value.toDevice().type() != kCuda) continue;
    value = routed(value.toDevice());
    led = true;
  }
  TORCH_CHECK(led, op.schema().operator_name(), " was called for CUDA, without a device to lead.");
  op.callBoxed(stack);
}

bool makes_tensors_on_a_device(const c10::OperatorHandle& op) {
  bool takes_device = false, takes_tensor = false;
  for (const auto& argument : op.schema().arguments()) {
    const auto type = argument.type()->str();
    takes_device |= type == "Device" || type == "Device?";
    takes_tensor |= type.find("Tensor") != std::string::npos;
  }
  return takes_device &&
         (!takes_tensor || op.hasKernelForDispatchKey(c10::DispatchKey::BackendSelect));
}

// `tensor.to("cuda")` is the tensor itself when it is there already.
at::Tensor to_device(const at::Tensor& self, c10::Device device, c10::ScalarType dtype,
                     bool non_blocking, bool copy, Maybe<c10::MemoryFormat> format) {
  return at::native::to(self, routed(device), dtype, non_blocking, copy, format);
}
at::Tensor to_layout(const at::Tensor& self, Maybe<c10::ScalarType> dtype,
                     Maybe<c10::Layout> layout, Maybe<c10::Device> device, Maybe<bool> pin,
                     bool non_blocking, bool copy, Maybe<c10::MemoryFormat> format) {
  if (device) device = routed(*device);
  return at::native::to(self, dtype, layout, device, pin, non_blocking, copy, format);
}

void route_moves(c10::DispatchKey key) {
  static std::vector<std::unique_ptr<torch::Library>> libraries;
  auto& library = *libraries.emplace_back(
      std::make_unique<torch::Library>(torch::Library::IMPL, "aten", key, __FILE__, __LINE__));
  library.impl("to.device", to_device);
  library.impl("to.dtype_layout", to_layout);
}

class RoutingGuard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return kCuda; }
  c10::Device exchangeDevice(c10::Device d) const override {
    return called_cuda(below().exchangeDevice(routed(d)));
  }
  c10::Device getDevice() const override { return called_cuda(below().getDevice()); }
  void setDevice(c10::Device d) const override { below().setDevice(routed(d)); }
  void uncheckedSetDevice(c10::Device d) const noexcept override {
    below().uncheckedSetDevice(routed(d));
  }
  c10::DeviceIndex deviceCount() const noexcept override { return below().deviceCount(); }
  c10::DeviceCapability getDeviceCapability(c10::Device d) const override {
    return below().getDeviceCapability(routed(d));
  }
  void synchronizeDevice(const c10::DeviceIndex index) const override {
    below().synchronizeDevice(index);
  }

  // Streams keep the private device's name: they are compared with those of its tensors.
  c10::Stream getStream(c10::Device d) const override { return below().getStream(routed(d)); }
  c10::Stream getDefaultStream(c10::Device d) const override {
    return below().getDefaultStream(routed(d));
  }
  c10::Stream getStreamFromGlobalPool(c10::Device d, bool urgent) const override {
    return below().getStreamFromGlobalPool(routed(d), urgent);
  }
  c10::Stream getNewStream(c10::Device d, int priority) const override {
    return below().getNewStream(routed(d), priority);
  }
  c10::Stream exchangeStream(c10::Stream s) const override {
    return below().exchangeStream(led(s));
  }
  void* getStreamNativeHandle(const c10::Stream s) const override {
    return below().getStreamNativeHandle(led(s));
  }
  bool queryStream(const c10::Stream& s) const override { return below().queryStream(led(s)); }
  void synchronizeStream(const c10::Stream& s) const override { below().synchronizeStream(led(s)); }

  void destroyEvent(void* event, const c10::DeviceIndex index) const noexcept override {
    below().destroyEvent(event, index);
  }
  void record(void** event, const c10::Stream& s, const c10::DeviceIndex index,
              const c10::EventFlag flag) const override {
    below().record(event, led(s), index, flag);
  }
  void block(void* event, const c10::Stream& s) const override { below().block(event, led(s)); }
  bool queryEvent(void* event) const override { return below().queryEvent(event); }
  void synchronizeEvent(void* event) const override { below().synchronizeEvent(event); }
  double elapsedTime(void* from, void* to, const c10::DeviceIndex index) const override {
    return below().elapsedTime(from, to, index);
  }

 private:
  static const c10::impl::DeviceGuardImplInterface& below() {
    return *c10::impl::getDeviceGuardImpl(kPrivate);
  }
  static c10::Device called_cuda(c10::Device d) { return {kCuda, d.index()}; }
  static c10::Stream led(c10::Stream s) {
    return c10::Stream(c10::Stream::UNSAFE, routed(s.device()), s.id());
  }
};

class RoutingHooks final : public at::CUDAHooksInterface {
 public:
  void init() const override { below().init(); }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return below().isAvailable(); }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex index) const override {
    return below().hasPrimaryContext(index);
  }
  c10::DeviceIndex deviceCount() const override { return below().deviceCount(); }
  int getNumGPUs() const override { return below().deviceCount(); }
  void setCurrentDevice(c10::DeviceIndex index) const override { below().setCurrentDevice(index); }
  c10::DeviceIndex getCurrentDevice() const override { return below().getCurrentDevice(); }
  c10::DeviceIndex current_device() const override { return below().getCurrentDevice(); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    return below().exchangeDevice(index);
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return below().maybeExchangeDevice(index);
  }
  bool isPinnedPtr(const void* data) const override { return below().isPinnedPtr(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    return below().getPinnedMemoryAllocator();
  }
  c10::Allocator* getCUDADeviceAllocator() const override { return c10::GetAllocator(kPrivate); }
  c10::Device getDeviceFromPtr(void* data) const override { return below().getDeviceFromPtr(data); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override {
    return below().getDefaultGenerator(index);
  }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override {
    decide(Spelling::kCuda);
    return below().getNewGenerator(index);
  }
  void deviceSynchronize(c10::DeviceIndex index) const override {
    c10::impl::getDeviceGuardImpl(kPrivate)->synchronizeDevice(index);
  }

 private:
  static const at::PrivateUse1HooksInterface& below() { return at::detail::getPrivateUse1Hooks(); }
};

}  // namespace

void register_routes() {
  static bool done = false;
  if (done) return;
  done = true;
  struct Silent final : c10::WarningHandler {
    void process(const c10::Warning&) override {}
  } silent;
  const c10::WarningUtils::WarningHandlerGuard quiet(&silent);
  using Key = c10::DispatchKey;
  for (const auto key : {Key::CUDA, Key::SparseCUDA, Key::SparseCsrCUDA}) {
    register_for_aten(key, makes_tensors_on_a_device, [](const c10::OperatorHandle&) {
      return torch::CppFunction::makeFromBoxedFunction<&route>();
    });
  }
  for (const auto key : {Key::PrivateUse1, Key::AutogradPrivateUse1}) route_moves(key);
  static const RoutingGuard guard;  // c10 keeps a pointer to it for the life of the process
  const c10::impl::DeviceGuardImplRegistrar registrar(kCuda, &guard);
  // As in hooks.cpp: ATen made its CUDA hooks at the first question and keeps them.
  auto* slot = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
  static_assert(sizeof(RoutingHooks) == sizeof(at::CUDAHooksInterface));
  new (static_cast<void*>(slot)) RoutingHooks;
}

}  // namespace offramp
