// Reductions between processes: those that CUDA programs use, on what Gloo offers.
#pragma once

#include <optional>
#include <torch/csrc/distributed/c10d/Backend.hpp>

namespace offramp {

class Reduction {
 public:
  // Of tensors of `type` over `size` ranks. Throws what NCCL throws for what it does not reduce.
  Reduction(const c10d::ReduceOp& op, c10::ScalarType type, int size);

  // `flat`, one-dimensional on the host, becomes the reduction over all ranks.
  void everywhere(c10d::Backend& gloo, const at::Tensor& flat,
                  std::chrono::milliseconds timeout) const;
  // The same on rank `root` alone; other ranks' `flat` is left as it is.
  void at_root(c10d::Backend& gloo, const at::Tensor& flat, int root,
               std::chrono::milliseconds timeout) const;
  // `flat` becomes the reduction of the rows of `parts`, [rank, element], in the order of ranks.
  void of_rows(const at::Tensor& flat, at::Tensor parts) const;

 private:
  at::Tensor staged(const at::Tensor& flat, bool copy) const;
  void finish(const at::Tensor& flat, const at::Tensor& stage) const;

  c10d::ReduceOp::RedOpType op_;
  at::Tensor factor_;                     // multiplied in before the sum
  std::optional<int64_t> divisor_;        // of whole numbers, after the sum
  std::optional<c10::ScalarType> stage_;  // the format computed in, where it is another
};

}  // namespace offramp
