// One memory, two tensors: the chip's and the CPU's view of it.
#include <ATen/EmptyTensor.h>
#include <ATen/SparseCsrTensorUtils.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/native/SparseTensorUtils.h>
#include <ATen/ops/_sparse_compressed_tensor_unsafe.h>
#include <ATen/ops/_sparse_coo_tensor_unsafe.h>
#include <ATen/ops/empty.h>
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

template <class Convert>
at::Tensor convert_sparse(const at::Tensor& tensor, c10::Device to, const Convert& convert) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const auto options = tensor.options().device(to);
  if (tensor.layout() == c10::kSparse) {
    auto* from = at::sparse::get_sparse_impl(tensor);
    auto made = at::_sparse_coo_tensor_unsafe(convert(from->indices()), convert(from->values()),
                                              tensor.sizes(), options, from->coalesced());
    auto* impl = at::sparse::get_sparse_impl(made);
    if (impl->sparse_dim() != from->sparse_dim() || impl->dense_dim() != from->dense_dim()) {
      impl->resize_and_clear_(from->sparse_dim(), from->dense_dim(), tensor.sizes());
    }
    impl->set_coalesced(from->coalesced());
    return made;
  }
  const auto [compressed, plain] = at::sparse_csr::getCompressedPlainIndices(tensor);
  auto* impl = at::sparse_csr::get_sparse_csr_impl(tensor);
  return at::_sparse_compressed_tensor_unsafe(convert(compressed), convert(plain),
                                              convert(impl->values()), tensor.sizes(),
                                              options.layout(tensor.layout()));
}

}  // namespace

at::Tensor host_view(const at::Tensor& tensor) {
  if (!tensor.defined() || !is_chip(tensor.device())) return tensor;
  if (tensor.layout() != c10::kStrided) {
    return convert_sparse(tensor, c10::Device(c10::kCPU), host_view);
  }
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
  auto storage = tensor.storage();
  if (auto* original = chip_storage(storage)) {
    return over(c10::Storage(c10::intrusive_ptr<StorageImpl>::reclaim_copy(original)), tensor,
                dense_key());
  }
  auto* impl = storage.unsafeGetStorageImpl();
  if (is_chip(storage.device())) return over(storage, tensor, dense_key());
  const size_t bytes = impl->nbytes();
  const bool ours = bytes == 0 || owns(impl->data_ptr());
  c10::DataPtr data;
  if (ours && bytes != 0) {
    auto& made = impl->_mutable_data_ptr_no_checks();
    data = c10::DataPtr(made.get(), made.get_context(), made.get_deleter(), device(index));
    made.release_context();
    impl->set_data_ptr_noswap(std::move(data));
    return over(storage, tensor, dense_key());
  }
  const ChargeScope charge(-1, label);
  data = allocate_on(index, bytes);
  if (bytes != 0) std::memcpy(data.get(), impl->data(), bytes);
  return over(c10::Storage(c10::Storage::use_byte_size_t(), bytes, std::move(data), allocator(),
                           /*resizable=*/true),
              tensor, dense_key());
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
    const auto [compressed, plain] = at::sparse_csr::getCompressedPlainIndices(view);
    at::sparse_csr::get_sparse_csr_impl(tensor)->set_member_tensors(
        adopt(compressed, index, "sparse"), adopt(plain, index, "sparse"),
        adopt(at::sparse_csr::get_sparse_csr_impl(view)->values(), index, "sparse"), view.sizes());
    return;
  }
  auto* impl = tensor.unsafeGetTensorImpl();
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
