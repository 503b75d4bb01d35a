// The chip's process group: collectives between processes of one or several machines.
//
// Gloo carries the bytes between the processes' host memories. What a CUDA program may ask of
// `nccl` and Gloo does not have (formats, reductions, splits, order, handles) is made here.
#pragma once

#include <memory>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <vector>

#include "reductions.h"
#include "works.h"

namespace offramp {

// What programs set of NCCL's communicators. Kept and shown, with no effect on host memory.
struct CommunicatorConfig {
  int blocking{-1}, cga_cluster_size{-1}, min_ctas{-1}, max_ctas{-1}, split_share{-1};
  int traffic_class{-1}, cta_policy{-1}, collnet_enable{-1}, n_channels_per_net_peer{-1};
  int nvlink_centric_sched{-1};
  std::string net_name, comm_name;
};

class Collectives final : public c10d::Backend {
 public:
  struct Options final : c10d::Backend::Options {
    Options() : c10d::Backend::Options("nccl", std::chrono::minutes(10)) {}
    std::string backend_name{"nccl"};  // what the program calls this kind of group
    bool is_high_priority_stream{false};
    int split_color{-2};
    CommunicatorConfig config;
    c10::intrusive_ptr<Collectives> split_from;
  };
  using Transport = c10::intrusive_ptr<c10d::Backend>;
  using Result = c10::intrusive_ptr<c10d::Work>;

  // `transport` is a Gloo backend of the same ranks.
  Collectives(Transport transport, c10::intrusive_ptr<Options> options);

  const std::string getBackendName() const override { return options_->backend_name; }
  c10::intrusive_ptr<Backend::Options> getBackendOptions() override { return options_; }
  bool supportsSplitting() const override { return true; }
  bool supportsCoalescing() const override { return true; }
  void setTimeout(std::chrono::milliseconds timeout) override;
  void startCoalescing() override;
  Result endCoalescing() override;
  void setSequenceNumberForGroup() override {}
  uint64_t getSequenceNumberForGroup() override { return sequence_; }
  c10d::ErrorType getError() override;
  void abort() override;
  void shutdown() override;
  c10::intrusive_ptr<Backend> split(const c10::intrusive_ptr<c10d::Store>& store,
                                    const std::vector<int>& ranks,
                                    const c10::intrusive_ptr<Backend::Options>& options) override;
  int64_t splits() const { return splits_; }
  void finish_pending();

  Result broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override;
  Result allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override;
  Result allreduce_coalesced(Tensors& tensors,
                             const c10d::AllreduceCoalescedOptions& options) override;
  Result reduce(Tensors& tensors, const c10d::ReduceOptions& options) override;
  Result allgather(std::vector<Tensors>& outputs, Tensors& inputs,
                   const c10d::AllgatherOptions& options) override;
  Result _allgather_base(at::Tensor& output, at::Tensor& input,
                         const c10d::AllgatherOptions& options) override;
  Result allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                         const c10d::AllgatherOptions& options) override;
  Result gather(std::vector<Tensors>& outputs, Tensors& inputs,
                const c10d::GatherOptions& options) override;
  Result scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                 const c10d::ScatterOptions& options) override;
  Result reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                        const c10d::ReduceScatterOptions& options) override;
  Result _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                              const c10d::ReduceScatterOptions& options) override;
  Result reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                         const c10d::ReduceScatterOptions& options) override;
  Result alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_splits,
                       std::vector<int64_t>& input_splits,
                       const c10d::AllToAllOptions& options) override;
  Result alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& options) override;
  Result send(Tensors& tensors, int to, int tag) override;
  Result recv(Tensors& tensors, int from, int tag) override;
  Result barrier(const c10d::BarrierOptions& options) override;

  // Makes the Gloo backend of a split-off group; given by Python, which has Gloo's constructor.
  using Connect = std::function<Transport(const c10::intrusive_ptr<c10d::Store>&, int rank,
                                          int size, std::chrono::milliseconds timeout)>;
  static Connect connect;

 private:
  struct Call {
    c10d::OpType type;
    const char* name;  // "allreduce"; the operator counted is c10d::<name>_
    Tensors inputs;
    Tensors outputs;
    bool asynchronous{true};
    int peer{-1};  // of a message: the other rank, in the group
  };
  // One reduce-scatter: the inputs of all ranks one after another, or a list of them.
  struct Part {
    Reduction how;
    at::Tensor output;
    Tensors inputs;
  };
  c10::intrusive_ptr<ChipWork> begin(const Call& call);
  std::string describe(const Call& call) const;
  void note(const Call& call, const ChipWork& work) const;
  // In a rehearsal: the call's effect on what is known, at once.
  void settle(const Call& call, const std::function<void(c10d::Backend&)>& run);
  // In a rehearsal: gives a message to the rank that it is for, or takes it once it is waited for.
  void deliver(const Call& call, ChipWork& work) const;
  // Runs `run` in the group's order; on this thread when the program waits for it anyway.
  Result submit(Call call, std::function<void(c10d::Backend&)> run);
  // Point-to-point: `post` has started it, and nothing waits behind it.
  Result pass(const Call& call, const std::function<Result()>& post);
  Result reduce_scatter_parts(Call call, const c10d::ReduceScatterOptions& options,
                              std::vector<Part> parts);

  Transport transport_;
  c10::intrusive_ptr<Options> options_;
  std::shared_ptr<Lane> lane_ = std::make_shared<Lane>();
  std::mutex mutex_;
  std::vector<c10::weak_intrusive_ptr<ChipWork>> begun_;
  std::vector<Result> coalesced_;
  std::atomic<int> coalescing_{0};
  uint64_t batch_{0};  // which group of coalesced calls, on the tape
  std::atomic<uint64_t> sequence_{0};
  std::atomic<int64_t> splits_{0};
  std::atomic<bool> aborted_{false}, failed_{false};
};

// Lets DistributedDataParallel time the chip's models.
void register_step_timer();

}  // namespace offramp
