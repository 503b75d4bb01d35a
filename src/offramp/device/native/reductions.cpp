#include "reductions.h"

#include "chip.h"
#include "operators.h"

namespace offramp {
namespace {

using Reduce = c10d::ReduceOp::RedOpType;

const char* name_of(Reduce op) {
  switch (op) {
    case Reduce::BAND:
      return "BAND";
    case Reduce::BOR:
      return "BOR";
    case Reduce::BXOR:
      return "BXOR";
    default:
      return "";
  }
}

at::Tensor premultiplier(const c10d::ReduceOp& op) {
  auto* found = dynamic_cast<c10d::PreMulSumSupplement*>(op.supplement_.get());
  TORCH_CHECK_VALUE(found != nullptr, "PREMUL_SUM without a factor");
  if (found->tensor_factor.defined()) return host_view(found->tensor_factor).reshape({});
  return at::scalar_tensor(found->double_factor, at::kDouble);
}

}  // namespace

Reduction::Reduction(const c10d::ReduceOp& op, c10::ScalarType type, int size) : op_(op.op_) {
  TORCH_CHECK_VALUE(*name_of(op_) == 0, "Cannot use ReduceOp.", name_of(op_), " with NCCL");
  if (type == at::kBool) {
    TORCH_CHECK_TYPE(op_ != Reduce::AVG, "Cannot use ReduceOp.AVG with boolean inputs");
    op_ = op_ == Reduce::PRODUCT || op_ == Reduce::MIN ? Reduce::MIN : Reduce::MAX;
    stage_ = at::kByte;
    return;
  }
  if (c10::isFloat8Type(type)) stage_ = at::kFloat;
  if (op_ == Reduce::PREMUL_SUM) {
    TORCH_CHECK_TYPE(c10::isFloatingType(type),
                     "Cannot use ReduceOp.PREMUL_SUM with inputs that are not floating-point");
    factor_ = premultiplier(op);
    op_ = Reduce::SUM;
  } else if (op_ == Reduce::AVG) {
    if (c10::isFloatingType(type)) {
      factor_ = at::scalar_tensor(1.0 / size, at::kDouble);
    } else {
      divisor_ = size;
    }
    op_ = Reduce::SUM;
  }
}

// What Gloo may write into: `flat` itself, unless that must stay or another format is needed.
at::Tensor Reduction::staged(const at::Tensor& flat, bool copy) const {
  auto stage = flat;
  if (stage_) {
    stage = flat.to(*stage_);
  } else if (copy) {
    stage = flat.clone();
  }
  if (factor_.defined()) stage.mul_(factor_);
  return stage;
}

void Reduction::finish(const at::Tensor& flat, const at::Tensor& stage) const {
  if (divisor_) stage.div_(*divisor_, "trunc");
  if (!stage.is_same(flat)) flat.copy_(stage);
}

void Reduction::everywhere(c10d::Backend& gloo, const at::Tensor& flat,
                           std::chrono::milliseconds timeout) const {
  auto stage = staged(flat, false);
  c10d::AllreduceOptions options;
  options.reduceOp = op_;
  options.timeout = timeout;
  std::vector<at::Tensor> tensors{stage};
  gloo.allreduce(tensors, options)->wait();
  finish(flat, stage);
}

void Reduction::at_root(c10d::Backend& gloo, const at::Tensor& flat, int root,
                        std::chrono::milliseconds timeout) const {
  const bool here = gloo.getRank() == root;
  auto stage = staged(flat, !here);
  c10d::ReduceOptions options;
  options.reduceOp = op_;
  options.rootRank = root;
  options.timeout = timeout;
  std::vector<at::Tensor> tensors{stage};
  gloo.reduce(tensors, options)->wait();
  if (here) finish(flat, stage);
}

void Reduction::of_rows(const at::Tensor& flat, at::Tensor parts) const {
  if (stage_) parts = parts.to(*stage_);
  if (factor_.defined()) parts.mul_(factor_);
  auto sum = parts[0];
  for (int64_t rank = 1; rank < parts.size(0); ++rank) {
    const auto row = parts[rank];
    if (op_ == Reduce::SUM) {
      sum.add_(row);
    } else if (op_ == Reduce::PRODUCT) {
      sum.mul_(row);
    } else if (op_ == Reduce::MIN) {
      at::minimum_out(sum, sum, row);
    } else {
      at::maximum_out(sum, sum, row);
    }
  }
  if (divisor_) sum.div_(*divisor_, "trunc");
  flat.copy_(sum);
}

}  // namespace offramp
