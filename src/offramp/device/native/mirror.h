// Collectives among processes that are not there: every other rank does as this one does.
#pragma once

#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <vector>

#include "works.h"

namespace offramp {

// One call on the tape.
struct Noted {
  c10d::OpType type;
  int index;        // the chip that takes part; -1 for a call on host memory
  int peer;         // the other rank of a message, in the group; -1
  uint64_t ticket;  // what a wait names
  uint64_t batch;   // calls that start together; 0: alone
};
void note_collective(const Noted& call, const Tensors& inputs, const Tensors& outputs,
                     const std::vector<int64_t>& ranks, const std::string& group);

// The global ranks of a group; all of them where it was made without a list.
template <class Ranks>
std::vector<int64_t> members(const c10d::Backend& group, const Ranks& ranks) {
  std::vector<int64_t> all(ranks.begin(), ranks.end());
  if (all.empty()) {
    for (int rank = 0; rank < group.getSize(); ++rank) all.push_back(rank);
  }
  return all;
}

// A group on host memory. Sums are what equal ranks would sum to; messages from others are zeros.
class Mirror final : public c10d::Backend {
 public:
  using Result = c10::intrusive_ptr<c10d::Work>;
  Mirror(int rank, int size) : Backend(rank, size), options_(c10::make_intrusive<Options>("gloo")) {
    init();
  }
  c10::intrusive_ptr<Options> getBackendOptions() override { return options_; }
  const std::string getBackendName() const override { return "gloo"; }
  bool supportsCoalescing() const override { return true; }
  void startCoalescing() override {}
  Result endCoalescing() override;
  void setTimeout(std::chrono::milliseconds) override {}
  void setSequenceNumberForGroup() override {}
  uint64_t getSequenceNumberForGroup() override { return sequence_; }

  Result broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override;
  Result allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override;
  Result allreduce_coalesced(Tensors& tensors,
                             const c10d::AllreduceCoalescedOptions& options) override;
  Result reduce(Tensors& tensors, const c10d::ReduceOptions& options) override;
  Result allgather(std::vector<Tensors>& outputs, Tensors& inputs,
                   const c10d::AllgatherOptions& options) override;
  Result _allgather_base(at::Tensor& output, at::Tensor& input,
                         const c10d::AllgatherOptions& options) override;
  Result gather(std::vector<Tensors>& outputs, Tensors& inputs,
                const c10d::GatherOptions& options) override;
  Result scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                 const c10d::ScatterOptions& options) override;
  Result reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                        const c10d::ReduceScatterOptions& options) override;
  Result _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                              const c10d::ReduceScatterOptions& options) override;
  Result alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_splits,
                       std::vector<int64_t>& input_splits,
                       const c10d::AllToAllOptions& options) override;
  Result alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& options) override;
  Result send(Tensors& tensors, int to, int tag) override;
  Result recv(Tensors& tensors, int from, int tag) override;
  Result barrier(const c10d::BarrierOptions& options) override;
  void monitoredBarrier(const c10d::BarrierOptions& options, bool) override { barrier(options); }

 private:
  Result done(c10d::OpType type, const Tensors& inputs, const Tensors& outputs, int peer = -1);

  c10::intrusive_ptr<Options> options_;  // PyTorch writes the group's members into it
  uint64_t sequence_{0};
};

}  // namespace offramp
