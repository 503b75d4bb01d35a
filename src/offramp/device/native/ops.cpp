// The operators that are about memory itself: making, viewing, resizing and copying tensors.
#include <ATen/EmptyTensor.h>
#include <ATen/NativeFunctions.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/copy_ops.h>
#include <ATen/ops/resize_ops.h>
#include <torch/library.h>

#include <optional>

#include "arithmetic.h"
#include "operators.h"
#include "rehearse.h"
#include "signature.h"
#include "tape.h"

namespace offramp {
namespace {

using at::IntArrayRef;
using at::Tensor;
template <class T>
using Maybe = std::optional<T>;

class DeviceScope {
 public:
  explicit DeviceScope(Maybe<c10::Device> wanted) : previous_(current_device()) {
    if (wanted && wanted->has_index()) set_current_device(wanted->index());
  }
  ~DeviceScope() { set_current_device(previous_); }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int previous_;
};

void count(Operator& op) { op.calls.fetch_add(1, std::memory_order_relaxed); }

Tensor empty(IntArrayRef size, Maybe<c10::ScalarType> dtype, Maybe<c10::Layout>,
             Maybe<c10::Device> where, Maybe<bool> pin, Maybe<c10::MemoryFormat> format) {
  TORCH_CHECK(!pin.value_or(false), "Only dense CPU tensors can be pinned");
  static Operator& op = operator_named("aten::empty", "memory_format");
  count(op);
  const DeviceScope scope(where);
  return at::detail::empty_generic(size, allocator(), c10::DispatchKeySet(dense_key()),
                                   c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, Maybe<c10::ScalarType> dtype,
                     Maybe<c10::Layout>, Maybe<c10::Device> where, Maybe<bool> pin) {
  TORCH_CHECK(!pin.value_or(false), "Only dense CPU tensors can be pinned");
  static Operator& op = operator_named("aten::empty_strided");
  count(op);
  const DeviceScope scope(where);
  return at::detail::empty_strided_generic(
      size, stride, allocator(), c10::DispatchKeySet(dense_key()), c10::dtype_or_default(dtype));
}

// A tensor known to be all zeros; no memory stands behind it.
Tensor efficient_zero_tensor(IntArrayRef size, Maybe<c10::ScalarType> dtype, Maybe<c10::Layout>,
                             Maybe<c10::Device> where, Maybe<bool>) {
  struct NoMemory final : c10::Allocator {
    c10::DataPtr allocate(size_t) override { return {nullptr, device(current_device())}; }
    void copy_data(void*, const void*, std::size_t) const override {}
  };
  static NoMemory none;
  const DeviceScope scope(where);
  const auto keys =
      c10::DispatchKeySet(dense_key()) | c10::DispatchKeySet(c10::DispatchKey::ZeroTensor);
  return at::detail::empty_generic(size, &none, keys, c10::dtype_or_default(dtype), std::nullopt);
}

// A copy on the tape; where it blocks the host until it is done, that too.
void note_copy(Operator& op, const Tensor& self, const Tensor& source, bool non_blocking) {
  if (!taping()) return;
  const bool from_chip = is_chip(source.device()), to_chip = is_chip(self.device());
  const int index = (to_chip ? self : source).device().index();
  const char* way = !to_chip ? "from chip" : !from_chip ? "to chip" : "on chip";
  if (to_chip && from_chip && self.device() != source.device()) way = "between chips";
  const auto key = mix(mix(mix(reinterpret_cast<uintptr_t>(way), self), source), 1);
  const auto number = signature_of(key, [&] {
    auto text = describe(op, {self, source}, {self});
    text.resize(text.size() - 2);
    return text + R"("way":")" + way + R"("}})";
  });
  note(Kind::kOp, index, number, 0, 0);
  const auto& host = to_chip ? source : self;
  if (from_chip == to_chip || (non_blocking && host.is_pinned())) return;
  note(from_chip ? Kind::kReadback : Kind::kSyncStream, index, 0, 0, 0);
}

Tensor& copy_(Tensor& self, const Tensor& source, bool non_blocking) {
  static Operator& op = operator_named("aten::copy_");
  count(op);
  if (self.is_same(source)) return self;
  note_copy(op, self, source, non_blocking);
  if (rehearsing()) return rehearse_copy(self, source);
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  Tensor to = host_view(self);
  const Tensor from = host_view(source);
  if (arithmetic().on && copy_as_chip(to, from)) return self;
  at::_ops::copy_::redispatch(c10::DispatchKeySet(c10::DispatchKey::CPU), to, from, false);
  return self;
}

Tensor copy_from(const Tensor& source, const Tensor& self, bool non_blocking) {
  Tensor to = self;
  return copy_(to, source, non_blocking);
}

void grow_storage(const c10::Storage& storage, size_t bytes) {
  auto* impl = storage.unsafeGetStorageImpl();
  if (bytes <= impl->nbytes()) return;
  TORCH_CHECK(impl->resizable(), "Trying to resize storage that is not resizable");
  auto memory = allocate_on(storage.device().index(), bytes);
  move_bytes(memory.get(), impl->data(), impl->nbytes());
  impl->set_data_ptr_noswap(std::move(memory));
  impl->set_nbytes(bytes);
}

const Tensor& resize_(const Tensor& self, IntArrayRef size, Maybe<c10::MemoryFormat> format) {
  auto* impl = self.unsafeGetTensorImpl();
  if (self.sizes() != size) {
    impl->set_sizes_contiguous(size);
    const auto bytes = at::detail::computeStorageNbytesContiguous(
        size, impl->itemsize(), static_cast<size_t>(impl->storage_offset()));
    grow_storage(self.storage(), bytes);
  }
  if (format) {
    TORCH_CHECK(*format != c10::MemoryFormat::Preserve, "Unsupported memory format", *format);
    impl->empty_tensor_restride(*format);
  }
  return self;
}

Tensor copy_from_and_resize(const Tensor& source, const Tensor& self) {
  Tensor to = self;
  resize_(to, source.sizes(), std::nullopt);
  return copy_(to, source, false);
}

Tensor& set_storage_strided(Tensor& self, at::Storage source, int64_t offset, IntArrayRef size,
                            IntArrayRef stride) {
  at::native::checkSetStorage(self, source, offset, size, stride);
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_offset(offset);
  if (stride.data() != nullptr) {
    impl->set_sizes_and_strides(size, stride);
    grow_storage(self.storage(), at::detail::computeStorageNbytes(size, stride, impl->itemsize(),
                                                                  static_cast<size_t>(offset)));
  } else {
    impl->set_sizes_contiguous(size);
    grow_storage(self.storage(), at::detail::computeStorageNbytesContiguous(
                                     size, impl->itemsize(), static_cast<size_t>(offset)));
  }
  return self;
}

Tensor& set_storage(Tensor& self, at::Storage source) {
  const auto count = static_cast<int64_t>(source.nbytes() / self.dtype().itemsize());
  return set_storage_strided(self, std::move(source), 0, {count}, {});
}

Tensor& set_nothing(Tensor& self) {
  const int index = self.device().index();
  c10::Storage none(c10::Storage::use_byte_size_t(), 0, allocate_on(index, 0), allocator(), true);
  return set_storage_strided(self, none, 0, {0}, {});
}

bool is_set_to(const Tensor& self, const Tensor& other) {
  return at::native::is_set_to(self, other);
}

c10::Scalar local_scalar_dense(const Tensor& self) {
  static Operator& op = operator_named("aten::_local_scalar_dense");
  count(op);
  note(Kind::kReadback, self.device().index(), 0, 0, 0);
  if (rehearsing() && !is_known(self)) return declared_value(self);
  return at::native::_local_scalar_dense_cpu(host_view(self));
}

Tensor as_strided(const Tensor& self, IntArrayRef size, IntArrayRef stride, Maybe<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}
Tensor view(const Tensor& self, IntArrayRef size) { return at::native::view(self, size); }
Tensor reshape_alias(const Tensor& self, IntArrayRef size, IntArrayRef stride) {
  return at::native::_reshape_alias(self, size, stride);
}
Tensor unfold(const Tensor& self, int64_t dim, int64_t size, int64_t step) {
  return at::native::unfold(self, dim, size, step);
}

void record_stream(Tensor&, c10::Stream) {}

// Whether `tensor.data = from` may change the one into the other. PyTorch knows it of CUDA and the
// CPU; for its private device it asks. Without it, `module.to(device)` would make new parameters,
// and weights that share memory would no longer.
bool has_compatible_shallow_copy_type(const Tensor& self, const Tensor& from) {
  const auto plain = [](const Tensor& tensor, c10::DispatchKey layout) {
    constexpr c10::DispatchKeySet backends(
        {c10::BackendComponent::CPUBit, c10::BackendComponent::PrivateUse1Bit});
    const auto keys = tensor.key_set();
    return keys.has_any(c10::DispatchKeySet(layout)) && keys.has_any(backends);
  };
  for (const auto layout : {c10::DispatchKey::Dense, c10::DispatchKey::Sparse}) {
    if (plain(self, layout) && plain(from, layout)) return true;
  }
  return self.unsafeGetTensorImpl()->has_compatible_shallow_copy_type(from.key_set());
}

}  // namespace

void register_own_operators() {
  static torch::Library library(torch::Library::IMPL, "aten", dense_key(), __FILE__, __LINE__);
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("_efficientzerotensor", efficient_zero_tensor);
  library.impl("copy_", copy_);
  library.impl("_copy_from", copy_from);
  library.impl("_copy_from_and_resize", copy_from_and_resize);
  library.impl("resize_", resize_);
  library.impl("set_.source_Storage_storage_offset", set_storage_strided);
  library.impl("set_.source_Storage", set_storage);
  library.impl("set_.source_Tensor", at::native::set_tensor_);
  library.impl("set_", set_nothing);
  library.impl("is_set_to", is_set_to);
  library.impl("_local_scalar_dense", local_scalar_dense);
  library.impl("as_strided", as_strided);
  library.impl("view", view);
  library.impl("_reshape_alias", reshape_alias);
  library.impl("unfold", unfold);
  library.impl("record_stream", record_stream);
  if (dense_key() != c10::DispatchKey::CUDA) {
    library.impl("_has_compatible_shallow_copy_type", has_compatible_shallow_copy_type);
  }
  register_composed_operators(library);
  register_attention(library);
}

}  // namespace offramp
