// Mixed precision for own-name chips, by CUDA's lists of operators. For `cuda` itself PyTorch
// brings these kernels along, in every build.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "chip.h"

namespace offramp {

using namespace at;  // the list macros name their helpers without a scope
using namespace at::autocast;

void register_autocast() {
  if (chip().type == c10::DeviceType::CUDA) return;
  static torch::Library rest(torch::Library::IMPL, "_", c10::DispatchKey::AutocastPrivateUse1,
                             __FILE__, __LINE__);
  rest.fallback(torch::CppFunction::makeFallthrough());
  static torch::Library m(torch::Library::IMPL, "aten", c10::DispatchKey::AutocastPrivateUse1,
                          __FILE__, __LINE__);
#define OFFRAMP_LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
  AT_FORALL_LOWER_PRECISION_FP(OFFRAMP_LOWER)
#undef OFFRAMP_LOWER
#define OFFRAMP_FP32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
  AT_FORALL_FP32(OFFRAMP_FP32)
#undef OFFRAMP_FP32
#define OFFRAMP_FP32_DTYPE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
  AT_FORALL_FP32_SET_OPT_DTYPE(OFFRAMP_FP32_DTYPE)
#undef OFFRAMP_FP32_DTYPE
  AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE(KERNEL_DIFFERENT_REDISPATCH_SIGNATURE_PRIVATEUSEONE)
#define OFFRAMP_PROMOTE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
  AT_FORALL_PROMOTE(OFFRAMP_PROMOTE)
#undef OFFRAMP_PROMOTE
}

}  // namespace offramp
