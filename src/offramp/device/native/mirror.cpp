#include "mirror.h"

#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <atomic>
#include <sstream>

#include "chip.h"
#include "signature.h"
#include "tape.h"

namespace offramp {
namespace {

using c10d::OpType;
using Reduce = c10d::ReduceOp::RedOpType;

const char* name_of(OpType type) {
  switch (type) {
    case OpType::BROADCAST:
      return "broadcast";
    case OpType::ALLREDUCE:
    case OpType::ALLREDUCE_COALESCED:
      return "all_reduce";
    case OpType::REDUCE:
      return "reduce";
    case OpType::ALLGATHER:
    case OpType::_ALLGATHER_BASE:
    case OpType::COALESCED:
      return "all_gather";
    case OpType::GATHER:
      return "gather";
    case OpType::SCATTER:
      return "scatter";
    case OpType::REDUCE_SCATTER:
    case OpType::_REDUCE_SCATTER_BASE:
    case OpType::REDUCE_SCATTER_TENSOR_COALESCED:
      return "reduce_scatter";
    case OpType::ALLTOALL:
    case OpType::ALLTOALL_BASE:
      return "all_to_all";
    case OpType::SEND:
      return "send";
    case OpType::RECV:
      return "recv";
    default:
      return "barrier";
  }
}

int64_t bytes_of(const Tensors& tensors) {
  int64_t bytes = 0;
  for (const auto& tensor : tensors) {
    bytes += tensor.numel() * static_cast<int64_t>(tensor.itemsize());
  }
  return bytes;
}

// A call that has ended; its tensors are there.
class Done final : public c10d::Work {
 public:
  Done(int rank, OpType type, Tensors outputs) : Work(rank, type), outputs_(std::move(outputs)) {
    finish();
  }
  std::vector<at::Tensor> result() override { return outputs_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
    auto made =
        c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
    made->markCompleted(c10::IValue(outputs_));
    return made;
  }

 private:
  Tensors outputs_;
};

// What ranks with equal values reduce to.
void reduce_equal(const at::Tensor& tensor, const c10d::ReduceOp& how, int size) {
  if (how.op_ == Reduce::SUM) {
    tensor.mul_(size);
  } else if (how.op_ == Reduce::PRODUCT) {
    tensor.pow_(size);
  } else if (how.op_ == Reduce::BXOR && size % 2 == 0) {
    tensor.zero_();
  }
}

}  // namespace

void note_collective(const Noted& call, const Tensors& inputs, const Tensors& outputs,
                     const std::vector<int64_t>& ranks, const std::string& group) {
  if (!taping()) return;
  const uint32_t number = group_of(ranks, group);
  const auto& first = inputs.empty() ? outputs : inputs;
  const int64_t bytes = std::max(bytes_of(inputs), bytes_of(outputs));
  const int64_t peer = call.peer < 0 ? -1 : ranks.at(static_cast<size_t>(call.peer));
  const auto text = [&] {
    std::ostringstream out;
    out << R"({"collective":")" << name_of(call.type) << R"(","bytes":)" << bytes << R"(,"dtype":")"
        << (first.empty() ? "" : dtype_name(first[0].scalar_type())) << R"(","group":)" << number
        << R"(,"peer":)" << peer << R"(,"on_host":)" << (call.index < 0 ? "true" : "false") << '}';
    return out.str();
  };
  const auto whole = text();
  const auto signature =
      signature_of(mix(11, std::hash<std::string>{}(whole)), [&] { return whole; });
  note(Kind::kCollective, std::max(call.index, 0), signature, call.ticket, call.batch);
}

Mirror::Result Mirror::done(OpType type, const Tensors& inputs, const Tensors& outputs, int peer) {
  static std::atomic<uint64_t> tickets{1ULL << 62};  // apart from those of the chip's groups
  const auto ticket = ++tickets;
  ++sequence_;
  note_collective({type, -1, peer, ticket, 0}, inputs, outputs,
                  members(*this, options_->global_ranks_in_group), options_->group_name);
  note(Kind::kWorkWait, 0, 0, ticket, 1);
  return c10::make_intrusive<Done>(getRank(), type, outputs);
}

Mirror::Result Mirror::endCoalescing() {
  return c10::make_intrusive<Done>(getRank(), OpType::COALESCED, Tensors{});
}

Mirror::Result Mirror::broadcast(Tensors& tensors, const c10d::BroadcastOptions&) {
  return done(OpType::BROADCAST, tensors, tensors);
}

Mirror::Result Mirror::allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  for (const auto& tensor : tensors) reduce_equal(tensor, options.reduceOp, getSize());
  return done(OpType::ALLREDUCE, tensors, tensors);
}

Mirror::Result Mirror::allreduce_coalesced(Tensors& tensors,
                                           const c10d::AllreduceCoalescedOptions& options) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  for (const auto& tensor : tensors) reduce_equal(tensor, options.reduceOp, getSize());
  return done(OpType::ALLREDUCE_COALESCED, tensors, tensors);
}

Mirror::Result Mirror::reduce(Tensors& tensors, const c10d::ReduceOptions& options) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  if (getRank() == options.rootRank) reduce_equal(tensors.at(0), options.reduceOp, getSize());
  return done(OpType::REDUCE, tensors, tensors);
}

Mirror::Result Mirror::allgather(std::vector<Tensors>& outputs, Tensors& inputs,
                                 const c10d::AllgatherOptions&) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  for (size_t i = 0; i < outputs.size(); ++i) {
    for (auto& out : outputs[i]) {
      if (out.sizes() == inputs[i].sizes()) out.copy_(inputs[i]);
    }
  }
  return done(OpType::ALLGATHER, inputs, outputs.at(0));
}

Mirror::Result Mirror::_allgather_base(at::Tensor& output, at::Tensor& input,
                                       const c10d::AllgatherOptions&) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  output.view({getSize(), -1}).copy_(input.reshape({1, -1}).expand({getSize(), -1}));
  return done(OpType::_ALLGATHER_BASE, {input}, {output});
}

Mirror::Result Mirror::gather(std::vector<Tensors>& outputs, Tensors& inputs,
                              const c10d::GatherOptions&) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  for (auto& list : outputs) {
    for (auto& out : list) {
      if (out.sizes() == inputs.at(0).sizes()) out.copy_(inputs[0]);
    }
  }
  return done(OpType::GATHER, inputs, outputs.empty() ? Tensors{} : outputs[0]);
}

Mirror::Result Mirror::scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                               const c10d::ScatterOptions& options) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  if (getRank() == options.rootRank) {
    outputs.at(0).copy_(inputs.at(0).at(static_cast<size_t>(getRank())));
  } else {
    outputs.at(0).zero_();
  }
  return done(OpType::SCATTER, inputs.empty() ? Tensors{} : inputs[0], outputs);
}

Mirror::Result Mirror::reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                                      const c10d::ReduceScatterOptions& options) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  outputs.at(0).copy_(inputs.at(0).at(static_cast<size_t>(getRank())));
  reduce_equal(outputs[0], options.reduceOp, getSize());
  return done(OpType::REDUCE_SCATTER, inputs[0], outputs);
}

Mirror::Result Mirror::_reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                            const c10d::ReduceScatterOptions& options) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  output.copy_(input.reshape({getSize(), -1}).select(0, getRank()).view_as(output));
  reduce_equal(output, options.reduceOp, getSize());
  return done(OpType::_REDUCE_SCATTER_BASE, {input}, {output});
}

// Rank i sends here what this rank sends to itself.
Mirror::Result Mirror::alltoall_base(at::Tensor& output, at::Tensor& input,
                                     std::vector<int64_t>& output_splits,
                                     std::vector<int64_t>& input_splits,
                                     const c10d::AllToAllOptions&) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const auto even = [&](const at::Tensor& tensor) {
    return std::vector<int64_t>(static_cast<size_t>(getSize()), tensor.size(0) / getSize());
  };
  const auto arrive = output_splits.empty() ? even(output) : output_splits;
  const auto leave = input_splits.empty() ? even(input) : input_splits;
  const auto here = static_cast<size_t>(getRank());
  int64_t start = 0, at = 0;
  for (size_t rank = 0; rank < here; ++rank) start += leave[rank];
  const auto own = input.narrow(0, start, leave[here]);
  for (const int64_t count : arrive) {
    const int64_t shared = std::min(count, leave[here]);
    output.narrow(0, at, shared).copy_(own.narrow(0, 0, shared));
    output.narrow(0, at + shared, count - shared).zero_();
    at += count;
  }
  return done(OpType::ALLTOALL_BASE, {input}, {output});
}

Mirror::Result Mirror::alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions&) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const auto& own = inputs.at(static_cast<size_t>(getRank()));
  for (auto& out : outputs) {
    if (out.sizes() == own.sizes()) {
      out.copy_(own);
    } else {
      out.zero_();
    }
  }
  return done(OpType::ALLTOALL, inputs, outputs);
}

Mirror::Result Mirror::send(Tensors& tensors, int to, int) {
  return done(OpType::SEND, tensors, {}, to);
}

Mirror::Result Mirror::recv(Tensors& tensors, int from, int) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  for (const auto& tensor : tensors) tensor.zero_();
  return done(OpType::RECV, {}, tensors, from);
}

Mirror::Result Mirror::barrier(const c10d::BarrierOptions&) {
  return done(OpType::BARRIER, {}, {});
}

}  // namespace offramp
