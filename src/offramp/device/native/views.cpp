// One memory, two tensors: the chip's and the CPU's view of it.
#include <ATen/EmptyTensor.h>
#include <ATen/NestedTensorImpl.h>
#include <ATen/SparseCsrTensorUtils.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/native/SparseTensorUtils.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>

#include <cstring>

#include "operators.h"

namespace offramp {
namespace {

using c10::StorageImpl;

// A view's DataPtr carries the chip's storage: it keeps it alive, and leads back to it.
void release_view(void* context) {
  c10::raw::intrusive_ptr::decref(static_cast<StorageImpl*>(context));
}

c10::Storage host_storage(const c10::Storage& storage) {
  auto* impl = storage.unsafeGetStorageImpl();
  c10::raw::intrusive_ptr::incref(impl);
  c10::DataPtr data(impl->mutable_data(), impl, &release_view, c10::Device(c10::kCPU));
  return {c10::Storage::use_byte_size_t(), impl->nbytes(), std::move(data), c10::GetCPUAllocator(),
          /*resizable=*/true};
}

// The chip's storage behind a view's, or nullptr when the memory is not the one it viewed.
StorageImpl* chip_storage(const c10::Storage& storage) {
  const auto& data = storage.data_ptr();
  return data.get_deleter() == &release_view ? static_cast<StorageImpl*>(data.get_context())
                                             : nullptr;
}

at::Tensor over(c10::Storage storage, const at::Tensor& like, c10::DispatchKey key) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key),
                                                       like.dtype());
  auto* impl = made.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  if (like.is_conj()) impl->_set_conj(true);
  if (like.is_neg()) impl->_set_neg(true);
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  return made;
}

c10::DispatchKey key_on(bool chip_side, c10::Layout layout) {
  using Key = c10::DispatchKey;
  if (layout == c10::kStrided) return chip_side ? dense_key() : Key::CPU;
  if (layout == c10::kSparse) return chip_side ? sparse_key() : Key::SparseCPU;
  return chip_side ? sparse_csr_key() : Key::SparseCsrCPU;
}

// A sparse tensor whose parts are those of `tensor` after `convert`.
template <class Convert>
at::Tensor convert_sparse(const at::Tensor& tensor, c10::Device to, const Convert& convert) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const c10::DispatchKeySet keys(key_on(is_chip(to), tensor.layout()));
  if (tensor.layout() == c10::kSparse) {
    auto* from = at::sparse::get_sparse_impl(tensor);
    auto made = at::detail::make_tensor<at::SparseTensorImpl>(keys, tensor.dtype());
    auto* impl = at::sparse::get_sparse_impl(made);
    impl->raw_resize_(from->sparse_dim(), from->dense_dim(), tensor.sizes());
    impl->set_indices_and_values_unsafe(convert(from->indices()), convert(from->values()));
    impl->set_coalesced(from->coalesced());
    return made;
  }
  auto* from = at::sparse_csr::get_sparse_csr_impl(tensor);
  auto made =
      at::detail::make_tensor<at::SparseCsrTensorImpl>(keys, to, tensor.layout(), tensor.dtype());
  at::sparse_csr::get_sparse_csr_impl(made)->set_member_tensors(
      convert(from->compressed_indices()), convert(from->plain_indices()), convert(from->values()),
      tensor.sizes());
  return made;
}

// A nested tensor over `storage`; sizes, strides and offsets are CPU tensors on every device.
at::Tensor convert_nested(const at::Tensor& tensor, c10::Storage storage) {
  const auto backend = [](const c10::Device& d) {
    return is_chip(d) ? c10::toBackendComponent(dense_key()) : c10::BackendComponent::CPUBit;
  };
  const auto keys = tensor.key_set().remove_backend(backend(tensor.device())) |
                    c10::DispatchKeySet(backend(storage.device()));
  auto* from = static_cast<at::native::NestedTensorImpl*>(tensor.unsafeGetTensorImpl());
  return at::detail::make_tensor<at::native::NestedTensorImpl>(
      std::move(storage), keys, tensor.dtype(), from->get_nested_sizes(),
      from->get_nested_strides(), from->get_storage_offsets());
}

// The chip's storage for what a CPU kernel returned: the one it viewed, or its memory taken over,
// or, for memory from elsewhere, a copy.
c10::Storage adopt_storage(const c10::Storage& storage, int index, const char* label) {
  if (auto* original = chip_storage(storage)) {
    return c10::Storage(c10::intrusive_ptr<StorageImpl>::reclaim_copy(original));
  }
  if (is_chip(storage.device())) return storage;
  auto* impl = storage.unsafeGetStorageImpl();
  const size_t bytes = impl->nbytes();
  if (bytes != 0 && owns(impl->data_ptr())) {
    auto& made = impl->_mutable_data_ptr_no_checks();
    c10::DataPtr data(made.get(), made.get_context(), made.get_deleter(), device(index));
    made.release_context();
    impl->set_data_ptr_noswap(std::move(data));
    return storage;
  }
  const ChargeScope charge(-1, label);
  c10::DataPtr data = allocate_on(index, bytes);
  if (bytes != 0) std::memcpy(data.get(), impl->data(), bytes);
  return {c10::Storage::use_byte_size_t(), bytes, std::move(data), allocator(),
          /*resizable=*/true};
}

}  // namespace

at::Tensor host_view(const at::Tensor& tensor) {
  if (!tensor.defined() || !is_chip(tensor.device())) return tensor;
  if (tensor.layout() != c10::kStrided) {
    return convert_sparse(tensor, c10::Device(c10::kCPU), host_view);
  }
  if (tensor.is_nested()) return convert_nested(tensor, host_storage(tensor.storage()));
  if (tensor._is_zerotensor()) {
    return at::zeros(tensor.sizes(), tensor.options().device(c10::kCPU));
  }
  return over(host_storage(tensor.storage()), tensor, c10::DispatchKey::CPU);
}

at::Tensor adopt(const at::Tensor& tensor, int index, const char* label) {
  if (!tensor.defined() || is_chip(tensor.device())) return tensor;
  if (tensor.layout() != c10::kStrided) {
    return convert_sparse(tensor, device(index),
                          [&](const at::Tensor& t) { return adopt(t, index, label); });
  }
  auto storage = adopt_storage(tensor.storage(), index, label);
  if (tensor.is_nested()) return convert_nested(tensor, std::move(storage));
  return over(std::move(storage), tensor, dense_key());
}

void follow(const at::Tensor& tensor, const at::Tensor& view) {
  if (tensor.layout() == c10::kSparse) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto* from = at::sparse::get_sparse_impl(view);
    auto* to = at::sparse::get_sparse_impl(tensor);
    const int index = tensor.device().index();
    to->raw_resize_(from->sparse_dim(), from->dense_dim(), view.sizes());
    to->set_indices_and_values_unsafe(adopt(from->indices(), index, "sparse"),
                                      adopt(from->values(), index, "sparse"));
    to->set_coalesced(from->coalesced());
    return;
  }
  if (tensor.layout() != c10::kStrided) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const int index = tensor.device().index();
    auto* from = at::sparse_csr::get_sparse_csr_impl(view);
    at::sparse_csr::get_sparse_csr_impl(tensor)->set_member_tensors(
        adopt(from->compressed_indices(), index, "sparse"),
        adopt(from->plain_indices(), index, "sparse"), adopt(from->values(), index, "sparse"),
        view.sizes());
    return;
  }
  if (tensor.is_nested()) return;
  auto* impl = tensor.unsafeGetTensorImpl();
  if (tensor.is_conj() != view.is_conj()) impl->_set_conj(view.is_conj());
  if (tensor.is_neg() != view.is_neg()) impl->_set_neg(view.is_neg());
  auto* storage = tensor.storage().unsafeGetStorageImpl();
  auto* seen = view.storage().unsafeGetStorageImpl();
  if (chip_storage(view.storage()) != storage) {
    const auto moved = adopt(view, tensor.device().index(), "resize");
    auto* from = moved.storage().unsafeGetStorageImpl();
    storage->set_nbytes(from->nbytes());
    storage->set_data_ptr_noswap(std::move(from->_mutable_data_ptr_no_checks()));
  } else if (seen->nbytes() != storage->nbytes()) {
    storage->set_nbytes(seen->nbytes());
  }
  if (impl->sizes() != view.sizes() || impl->strides() != view.strides() ||
      impl->storage_offset() != view.storage_offset()) {
    impl->set_sizes_and_strides(view.sizes(), view.strides(), view.storage_offset());
  }
}

}  // namespace offramp
