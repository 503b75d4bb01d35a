"""Which operators do what, by name without namespace `aten` and without overload.

What is in no set here reads its inputs and writes its outputs once.
"""

from __future__ import annotations

from collections.abc import Mapping


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# No kernel at all: another view of the same memory, or memory without values.
VIEWS = _names(
    """
    view _unsafe_view reshape _reshape_alias view_as view_as_real view_as_complex alias detach
    detach_ as_strided as_strided_ expand expand_as permute t t_ transpose transpose_ numpy_T mT
    movedim swapaxes swapdims squeeze squeeze_ unsqueeze unsqueeze_ flatten unflatten select slice
    narrow split split_with_sizes chunk tensor_split unbind unfold diagonal real imag _conj
    _neg_view lift lift_fresh resolve_conj resolve_neg data set_ set_data rename _make_dual
    empty empty_strided empty_like new_empty new_empty_strided resize_ resize_as_
    record_stream is_pinned requires_grad_ retain_grad _unpack_dual _fw_primal _version
    sym_size sym_stride sym_numel sym_storage_offset size stride is_same_size is_contiguous
    _has_compatible_shallow_copy_type
    """
)
# Only write: what was in the tensor before is not read.
WRITES = _names(
    """
    fill_ zero_ zeros zeros_like ones ones_like full full_like new_zeros new_ones new_full
    arange linspace eye rand randn randint randperm rand_like randn_like randint_like
    normal_ uniform_ random_ bernoulli_ exponential_ trunc_normal_ geometric_ log_normal_ cauchy_
    scalar_tensor tril_indices triu_indices _foreach_zero_ nll_loss_backward nll_loss2d_backward
    """
)
# Rows of a table by index.
LOOKUPS = _names("embedding index_select index _unsafe_index gather take _embedding_bag")
# Update places of an existing tensor, or of a copy of it, by index.
PATCHES = _names(
    """
    index_put_ _index_put_impl_ _unsafe_index_put index_add_ index_copy_ index_fill_ scatter_
    scatter_add_ scatter_reduce_ masked_scatter_ put_ embedding_renorm_
    index_put index_add index_copy scatter scatter_add scatter_reduce masked_scatter
    """
)
# A new tensor of zeros into which an update is added by index.
SCATTERS = _names("embedding_dense_backward embedding_backward _embedding_bag_dense_backward")
# Read one value a row of their first input.
SPARSE_READS = _names("nll_loss_forward nll_loss2d_forward nll_loss")
ROWS_IN_REGISTERS = 1024  # elements of a row that PyTorch's softmax kernels keep (SoftMax.cu)
# Softmax and its like: passes over rows.
ROWWISE = _names(
    """
    _softmax _log_softmax _safe_softmax softmax log_softmax logsumexp
    _softmax_backward_data _log_softmax_backward_data
    """
)
# Sums, norms, searches: threads that wait for each other.
REDUCTIONS = _names(
    """
    sum mean prod amax amin max min aminmax argmax argmin any all norm linalg_vector_norm var
    var_mean std std_mean nansum count_nonzero cumsum cumprod cumsum_ logcumsumexp
    native_layer_norm native_batch_norm native_group_norm _fused_rms_norm rms_norm
    native_layer_norm_backward native_batch_norm_backward native_group_norm_backward
    _fused_rms_norm_backward cudnn_batch_norm_backward
    cudnn_batch_norm _native_batch_norm_legit _foreach_norm _foreach_max dist sort topk kthvalue
    median mode unique _unique2 unique_dim unique_consecutive histc bincount searchsorted bucketize
    _amp_foreach_non_finite_check_and_unscale_ fused_reduction mse_loss l1_loss binary_cross_entropy
    """
)
# Read or write out of order, but all of it.
GATHERS = _names("masked_select nonzero repeat_interleave roll flip")
# How often more than once the inputs are read.
EXTRA_READS: Mapping[str, float] = {
    "sort": 8.0,  # radix sort: four passes over the keys, each reads and writes
    "topk": 3.0,  # radix select: a pass for each digit
    "kthvalue": 3.0,
    "median": 3.0,
    "unique": 8.0,
    "_unique2": 8.0,
    "cumsum": 1.0,
    "native_layer_norm_backward": 1.0,  # one kernel for the input, one for weight and bias
    "_fused_rms_norm_backward": 1.0,
    "native_group_norm_backward": 1.0,
    "native_batch_norm_backward": 1.0,
    "native_batch_norm": 1.0,  # statistics, then values
    "native_group_norm": 1.0,
}
