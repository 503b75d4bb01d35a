#include "collectives.h"

#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>

#include "operators.h"
#include "reductions.h"
#include "rehearse.h"

namespace offramp {
namespace {

using c10d::OpType;

constexpr int kGatherTag = 1;  // programs' own messages have 0
constexpr int kScatterTag = 2;

// Formats that NCCL carries; others it refuses by this message.
void check_format(const at::Tensor& tensor) {
  const auto type = tensor.scalar_type();
  const bool known = c10::isFloatingType(type) || c10::isComplexType(type) || type == at::kBool ||
                     type == at::kByte || type == at::kChar || type == at::kInt ||
                     type == at::kLong;
  TORCH_CHECK_TYPE(known, "Input tensor data type is not supported for NCCL process group: ",
                   c10::toString(type));
}

// The memory of a tensor in the order it lies in, one-dimensional, complex as pairs of reals.
at::Tensor flat(const at::Tensor& tensor) {
  TORCH_CHECK(is_chip(tensor.device()) && tensor.layout() == c10::kStrided,
              "Tensors must be CUDA and dense");
  check_format(tensor);
  TORCH_CHECK(tensor.is_non_overlapping_and_dense(), "Tensors must be contiguous");
  auto host = host_view(tensor);
  host = host.as_strided({host.numel()}, {1}, host.storage_offset());
  return host.is_complex() ? at::view_as_real(host).view({-1}) : host;
}

at::Tensor bytes(const at::Tensor& tensor) { return flat(tensor).view(at::kByte); }

Tensors each(const Tensors& tensors, at::Tensor (*convert)(const at::Tensor&)) {
  Tensors made;
  for (const auto& tensor : tensors) made.push_back(convert(tensor));
  return made;
}

Reduction reduction(const c10d::ReduceOp& op, const at::Tensor& tensor, int size) {
  auto type = tensor.scalar_type();
  if (c10::isComplexType(type)) {
    using Kind = c10d::ReduceOp::RedOpType;
    TORCH_CHECK(op.op_ == Kind::SUM || op.op_ == Kind::AVG || op.op_ == Kind::PREMUL_SUM,
                "all_reduce does not support this reduction on complex tensors");
    type = c10::toRealValueType(type);
  }
  return {op, type, size};
}

const at::Tensor& single(const Tensors& tensors) {
  TORCH_CHECK(tensors.size() == 1, "Expecting one tensor only but got ", tensors.size());
  return tensors[0];
}

std::vector<int64_t> row_splits(const std::vector<int64_t>& splits, const at::Tensor& tensor,
                                int size) {
  c10d::checkSplitSizes(splits, tensor, size);
  if (!splits.empty()) return splits;
  const int64_t rows = tensor.dim() == 0 ? 0 : tensor.size(0);
  return std::vector<int64_t>(static_cast<size_t>(size), rows / size);
}

// [rows, bytes of a row]
at::Tensor rows_of_bytes(const at::Tensor& tensor) {
  const int64_t rows = tensor.dim() == 0 ? 1 : tensor.size(0);
  const auto all = bytes(tensor);
  return all.view({rows, rows == 0 ? 0 : all.numel() / rows});
}

void exchange(c10d::Backend& gloo, at::Tensor output, at::Tensor input,
              std::vector<int64_t> output_splits, std::vector<int64_t> input_splits,
              std::chrono::milliseconds timeout) {
  c10d::AllToAllOptions options;
  options.timeout = timeout;
  gloo.alltoall_base(output, input, output_splits, input_splits, options)->wait();
}

std::vector<int64_t> lengths(const Tensors& tensors) {
  std::vector<int64_t> all;
  for (const auto& tensor : tensors) all.push_back(tensor.numel());
  return all;
}

void deal_out(const at::Tensor& all, const Tensors& parts) {
  int64_t start = 0;
  for (const auto& part : parts) {
    part.copy_(all.narrow(0, start, part.numel()));
    start += part.numel();
  }
}

bool same_lengths(const Tensors& tensors, int64_t length) {
  return std::all_of(tensors.begin(), tensors.end(),
                     [&](const at::Tensor& tensor) { return tensor.numel() == length; });
}

void send_from(c10d::Backend& gloo, const at::Tensor& tensor, int64_t root,
               std::chrono::milliseconds timeout) {
  c10d::BroadcastOptions options;
  options.rootRank = root;
  options.timeout = timeout;
  Tensors tensors{tensor};
  gloo.broadcast(tensors, options)->wait();
}

void gather_evenly(c10d::Backend& gloo, at::Tensor output, at::Tensor input,
                   std::chrono::milliseconds timeout) {
  c10d::AllgatherOptions options;
  options.timeout = timeout;
  gloo._allgather_base(output, input, options)->wait();
}

// Rank r's input lands in outputs[r]; all are flat bytes.
void gather_lists(c10d::Backend& gloo, const Tensors& outputs, const at::Tensor& input,
                  std::chrono::milliseconds timeout) {
  if (same_lengths(outputs, input.numel())) {
    auto all = at::empty({static_cast<int64_t>(outputs.size()) * input.numel()}, input.options());
    gather_evenly(gloo, all, input, timeout);
    deal_out(all, outputs);
    return;
  }
  const auto here = static_cast<size_t>(gloo.getRank());
  TORCH_CHECK(outputs[here].numel() == input.numel(),
              "all_gather: this rank's output has another size than its input");
  outputs[here].copy_(input);
  for (size_t rank = 0; rank < outputs.size(); ++rank) {
    send_from(gloo, outputs[rank], static_cast<int64_t>(rank), timeout);
  }
}

}  // namespace

Collectives::Result Collectives::broadcast(Tensors& tensors, const c10d::BroadcastOptions& o) {
  auto host = bytes(single(tensors));
  return submit({OpType::BROADCAST, "broadcast", tensors, tensors, o.asyncOp},
                [=](c10d::Backend& gloo) { send_from(gloo, host, o.rootRank, o.timeout); });
}

Collectives::Result Collectives::allreduce(Tensors& tensors, const c10d::AllreduceOptions& o) {
  const auto how = reduction(o.reduceOp, single(tensors), getSize());
  const auto host = flat(tensors[0]);
  return submit({OpType::ALLREDUCE, "allreduce", tensors, tensors, o.asyncOp},
                [=](c10d::Backend& gloo) { how.everywhere(gloo, host, o.timeout); });
}

Collectives::Result Collectives::allreduce_coalesced(Tensors& tensors,
                                                     const c10d::AllreduceCoalescedOptions& o) {
  std::vector<Reduction> how;
  for (const auto& tensor : tensors) how.push_back(reduction(o.reduceOp, tensor, getSize()));
  const auto hosts = each(tensors, flat);
  return submit({OpType::ALLREDUCE_COALESCED, "allreduce_coalesced", tensors, tensors, o.asyncOp},
                [=](c10d::Backend& gloo) {
                  for (size_t i = 0; i < hosts.size(); ++i) {
                    how[i].everywhere(gloo, hosts[i], o.timeout);
                  }
                });
}

Collectives::Result Collectives::reduce(Tensors& tensors, const c10d::ReduceOptions& o) {
  const auto how = reduction(o.reduceOp, single(tensors), getSize());
  const auto host = flat(tensors[0]);
  return submit({OpType::REDUCE, "reduce", tensors, tensors, o.asyncOp}, [=](c10d::Backend& gloo) {
    how.at_root(gloo, host, static_cast<int>(o.rootRank), o.timeout);
  });
}

Collectives::Result Collectives::allgather(std::vector<Tensors>& outputs, Tensors& inputs,
                                           const c10d::AllgatherOptions& o) {
  const auto input = bytes(single(inputs));
  TORCH_CHECK(outputs.size() == 1 && outputs[0].size() == static_cast<size_t>(getSize()),
              "all_gather needs one list of as many outputs as the group has ranks");
  const auto hosts = each(outputs[0], bytes);
  return submit({OpType::ALLGATHER, "allgather", inputs, outputs[0], o.asyncOp},
                [=](c10d::Backend& gloo) { gather_lists(gloo, hosts, input, o.timeout); });
}

Collectives::Result Collectives::_allgather_base(at::Tensor& output, at::Tensor& input,
                                                 const c10d::AllgatherOptions& o) {
  TORCH_CHECK_TYPE(input.scalar_type() == output.scalar_type(),
                   "output tensor must have the same type as input tensor");
  TORCH_CHECK_VALUE(input.numel() * getSize() == output.numel(),
                    "output tensor size must be equal to world_size times input tensor size");
  const auto to = bytes(output), from = bytes(input);
  return submit({OpType::_ALLGATHER_BASE, "_allgather_base", {input}, {output}, o.asyncOp},
                [=](c10d::Backend& gloo) { gather_evenly(gloo, to, from, o.timeout); });
}

Collectives::Result Collectives::allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                                                 const c10d::AllgatherOptions& o) {
  TORCH_CHECK(outputs.size() == inputs.size(), "as many outputs as inputs are needed");
  const auto to = each(outputs, bytes), from = each(inputs, bytes);
  return submit({OpType::COALESCED, "allgather_into_tensor_coalesced", inputs, outputs, o.asyncOp},
                [=](c10d::Backend& gloo) {
                  for (size_t i = 0; i < to.size(); ++i) {
                    gather_evenly(gloo, to[i], from[i], o.timeout);
                  }
                });
}

Collectives::Result Collectives::gather(std::vector<Tensors>& outputs, Tensors& inputs,
                                        const c10d::GatherOptions& o) {
  const auto input = bytes(single(inputs));
  const Tensors targets = getRank() == o.rootRank ? outputs.at(0) : Tensors{};
  TORCH_CHECK(getRank() != o.rootRank || targets.size() == static_cast<size_t>(getSize()),
              "gather needs as many outputs on its root as the group has ranks");
  const auto hosts = each(targets, bytes);
  return submit({OpType::GATHER, "gather", inputs, targets, o.asyncOp}, [=](c10d::Backend& gloo) {
    // Parts may differ in length, so each goes by itself, as NCCL has it.
    if (hosts.empty()) {
      Tensors one{input};
      gloo.send(one, static_cast<int>(o.rootRank), kGatherTag)->wait();
      return;
    }
    std::vector<Result> arriving;
    for (int rank = 0; rank < static_cast<int>(hosts.size()); ++rank) {
      const auto& host = hosts[static_cast<size_t>(rank)];
      Tensors one{host};
      const bool played = rehearsing() && host.numel() == input.numel();  // others do as this one
      if (rank == gloo.getRank() || played) {
        host.copy_(input);
      } else {
        arriving.push_back(gloo.recv(one, rank, kGatherTag));
      }
    }
    for (const auto& part : arriving) part->wait();
  });
}

Collectives::Result Collectives::scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                                         const c10d::ScatterOptions& o) {
  const auto output = bytes(single(outputs));
  const Tensors sources = getRank() == o.rootRank ? inputs.at(0) : Tensors{};
  TORCH_CHECK(getRank() != o.rootRank || sources.size() == static_cast<size_t>(getSize()),
              "scatter needs as many inputs on its root as the group has ranks");
  const auto hosts = each(sources, bytes);
  return submit({OpType::SCATTER, "scatter", sources, outputs, o.asyncOp},
                [=](c10d::Backend& gloo) {
                  if (hosts.empty()) {
                    Tensors one{output};
                    gloo.recv(one, static_cast<int>(o.rootRank), kScatterTag)->wait();
                    return;
                  }
                  std::vector<Result> leaving;
                  for (int rank = 0; rank < static_cast<int>(hosts.size()); ++rank) {
                    const auto& host = hosts[static_cast<size_t>(rank)];
                    Tensors one{host};
                    if (rank == gloo.getRank()) {
                      output.copy_(host);
                    } else {
                      leaving.push_back(gloo.send(one, rank, kScatterTag));
                    }
                  }
                  for (const auto& part : leaving) part->wait();
                });
}

// A reduce-scatter sends every rank its part of each input and reduces what arrives.
Collectives::Result Collectives::reduce_scatter_parts(Call call,
                                                      const c10d::ReduceScatterOptions& o,
                                                      std::vector<Part> parts) {
  const auto size = getSize();
  return submit(std::move(call), [=](c10d::Backend& gloo) {
    for (const auto& part : parts) {
      auto parts_of_me = at::empty({size * part.output.numel()}, part.output.options());
      const auto width = part.output.element_size();
      std::vector<int64_t> arrive(static_cast<size_t>(size), part.output.numel() * width);
      auto leave = lengths(part.inputs);
      for (auto& length : leave) length *= width;
      const auto joined = part.inputs.size() == 1 ? part.inputs[0] : at::cat(part.inputs);
      if (part.inputs.size() == 1) leave.assign(static_cast<size_t>(size), leave[0] / size);
      exchange(gloo, parts_of_me.view(at::kByte), joined.view(at::kByte), arrive, leave, o.timeout);
      part.how.of_rows(part.output, parts_of_me.view({size, part.output.numel()}));
    }
  });
}

Collectives::Result Collectives::reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                                                const c10d::ReduceScatterOptions& o) {
  const auto how = reduction(o.reduceOp, single(outputs), getSize());
  TORCH_CHECK(inputs.size() == 1 && inputs[0].size() == static_cast<size_t>(getSize()),
              "reduce_scatter needs one list of as many inputs as the group has ranks");
  return reduce_scatter_parts(
      {OpType::REDUCE_SCATTER, "reduce_scatter", inputs[0], outputs, o.asyncOp}, o,
      {{how, flat(outputs[0]), each(inputs[0], flat)}});
}

Collectives::Result Collectives::_reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                                      const c10d::ReduceScatterOptions& o) {
  TORCH_CHECK_TYPE(input.scalar_type() == output.scalar_type(),
                   "input tensor must be the same type as the output tensor.");
  TORCH_CHECK_VALUE(input.numel() == output.numel() * getSize(),
                    "input tensor must be the same size as output size times world size");
  const auto how = reduction(o.reduceOp, output, getSize());
  return reduce_scatter_parts(
      {OpType::_REDUCE_SCATTER_BASE, "_reduce_scatter_base", {input}, {output}, o.asyncOp}, o,
      {{how, flat(output), {flat(input)}}});
}

Collectives::Result Collectives::reduce_scatter_tensor_coalesced(
    Tensors& outputs, Tensors& inputs, const c10d::ReduceScatterOptions& o) {
  TORCH_CHECK(outputs.size() == inputs.size(), "as many outputs as inputs are needed");
  std::vector<Part> parts;
  for (size_t i = 0; i < outputs.size(); ++i) {
    parts.push_back(
        {reduction(o.reduceOp, outputs[i], getSize()), flat(outputs[i]), {flat(inputs[i])}});
  }
  return reduce_scatter_parts({OpType::REDUCE_SCATTER_TENSOR_COALESCED,
                               "reduce_scatter_tensor_coalesced", inputs, outputs, o.asyncOp},
                              o, std::move(parts));
}

Collectives::Result Collectives::alltoall_base(at::Tensor& output, at::Tensor& input,
                                               std::vector<int64_t>& output_splits,
                                               std::vector<int64_t>& input_splits,
                                               const c10d::AllToAllOptions& o) {
  // Every rank states its splits: ranks that differ in that could not meet otherwise.
  const auto arrive = row_splits(output_splits, output, getSize());
  const auto leave = row_splits(input_splits, input, getSize());
  const auto to = rows_of_bytes(output), from = rows_of_bytes(input);
  return submit({OpType::ALLTOALL_BASE, "alltoall_base", {input}, {output}, o.asyncOp},
                [=](c10d::Backend& gloo) { exchange(gloo, to, from, arrive, leave, o.timeout); });
}

Collectives::Result Collectives::alltoall(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllToAllOptions& o) {
  const auto size = static_cast<size_t>(getSize());
  TORCH_CHECK(outputs.size() == size && inputs.size() == size,
              "all_to_all needs as many inputs and outputs as the group has ranks");
  const auto to = each(outputs, bytes), from = each(inputs, bytes);
  return submit({OpType::ALLTOALL, "alltoall", inputs, outputs, o.asyncOp},
                [=](c10d::Backend& gloo) {
                  const auto sent = at::cat(from);
                  int64_t expected = 0;
                  for (const auto length : lengths(to)) expected += length;
                  const auto arrived = at::empty({expected}, sent.options());
                  exchange(gloo, arrived, sent, lengths(to), lengths(from), o.timeout);
                  deal_out(arrived, to);
                });
}

// NCCL has no tags: messages between two ranks arrive in the order in which they were sent.
Collectives::Result Collectives::send(Tensors& tensors, int to, int) {
  Tensors host{bytes(single(tensors))};
  return pass({OpType::SEND, "send", tensors, {}, true, to},
              [&] { return transport_->send(host, to, 0); });
}

Collectives::Result Collectives::recv(Tensors& tensors, int from, int) {
  Tensors host{bytes(single(tensors))};
  return pass({OpType::RECV, "recv_", {}, tensors, true, from},
              [&] { return transport_->recv(host, from, 0); });
}

Collectives::Result Collectives::barrier(const c10d::BarrierOptions& o) {
  return submit({OpType::BARRIER, "barrier", {}, {}, o.asyncOp}, [=](c10d::Backend& gloo) {
    auto options = o;
    options.device = c10::Device(c10::kCPU);
    options.device_ids.clear();
    gloo.barrier(options)->wait();
  });
}

}  // namespace offramp
