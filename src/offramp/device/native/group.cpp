// The life of a process group: how its calls are run, joined, timed out and ended.
#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <set>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>

#include "collectives.h"
#include "letters.h"
#include "mirror.h"
#include "operators.h"
#include "rehearse.h"
#include "tape.h"

namespace offramp {

Collectives::Connect Collectives::connect;

Collectives::Collectives(Transport transport, c10::intrusive_ptr<Options> options)
    : Backend(transport->getRank(), transport->getSize()),
      transport_(std::move(transport)),
      options_(std::move(options)) {
  init();
}

namespace {

void count(const char* name) {
  const auto full = "c10d::" + std::string(name) + "_";
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& candidate : {full, full.substr(0, full.size() - 1)}) {
    if (const auto handle = dispatcher.findSchema({candidate, ""})) {
      operator_for(*handle).calls.fetch_add(1, std::memory_order_relaxed);
      return;
    }
  }
}

// The tensors of a call that exist for it alone: what is gathered, and what is to be scattered.
Tensors buffers(c10d::OpType type, const Tensors& inputs, const Tensors& outputs) {
  using c10d::OpType;
  switch (type) {
    case OpType::ALLGATHER:
    case OpType::_ALLGATHER_BASE:
    case OpType::COALESCED:
      return outputs;
    case OpType::REDUCE_SCATTER:
    case OpType::_REDUCE_SCATTER_BASE:
    case OpType::REDUCE_SCATTER_TENSOR_COALESCED:
      return inputs;
    default:
      return {};
  }
}

// A profiler keeps the pointer.
const char* kept(const std::string& text) {
  static std::mutex mutex;
  static auto* texts = new std::set<std::string>;
  const std::lock_guard<std::mutex> lock(mutex);
  return texts->insert(text).first->c_str();
}

// What DistributedDataParallel times itself with; it looks for one of the model's device.
class StepTimer final : public c10d::Timer {
 public:
  explicit StepTimer(c10::Device) {}
  std::optional<int64_t> measureDifference(Event start, Event end) override {
    const auto from = getTimestamp(start), to = getTimestamp(end);
    return from && to && *to >= *from ? std::optional<int64_t>(*to - *from) : std::nullopt;
  }
};

// Gloo's reason, and around it what the program knows of the call.
std::exception_ptr explained(std::exception_ptr failure, const std::string& call) {
  try {
    std::rethrow_exception(failure);
  } catch (const c10::Error&) {
    return failure;
  } catch (const std::exception& error) {
    const std::string reason = error.what();
    const bool late = reason.find("imed out") != std::string::npos;
    return std::make_exception_ptr(C10_BUILD_ERROR(
        DistBackendError,
        c10::str(call, late ? " timed out" : " failed",
                 ". Another rank may have ended, or may be at another collective: every rank of a "
                 "group must make the same calls in the same order. Cause: ",
                 reason)));
  } catch (...) {
    return failure;
  }
}

}  // namespace

void register_step_timer() {
  static std::once_flag once;
  std::call_once(once, [] {
    const auto make = [](c10::Device where) -> std::unique_ptr<c10d::Timer> {
      return std::make_unique<StepTimer>(where);
    };
    // A CUDA build has one, of the CUDA runtime's events.
    c10d::TimerRegistry()->Register(chip().type, make, c10::REGISTRY_PREFERRED);
  });
}

c10::intrusive_ptr<ChipWork> Collectives::begin(const Call& call) {
  TORCH_CHECK_WITH(DistBackendError, !aborted_, "the process group was aborted or destroyed");
  count(call.name);
  auto work =
      c10::make_intrusive<ChipWork>(getRank(), call.type, kept(getBackendName() + ":" + call.name),
                                    call.inputs, call.outputs, ++sequence_);
  const std::lock_guard<std::mutex> lock(mutex_);
  begun_.erase(
      std::remove_if(begun_.begin(), begun_.end(), [](const auto& each) { return each.expired(); }),
      begun_.end());
  begun_.emplace_back(work);
  return work;
}

std::string Collectives::describe(const Call& call) const {
  return c10::str(getBackendName(), " ", call.name, " on rank ", getRank(), " of ", getSize(),
                  " in group '", getGroupDesc().empty() ? options_->group_name : getGroupDesc(),
                  "' (virtual ", chip().name, ")");
}

void Collectives::note(const Call& call, const ChipWork& work) const {
  if (!taping()) return;
  const auto& tensors = call.outputs.empty() ? call.inputs : call.outputs;
  const int index = tensors.empty() ? current_device() : tensors[0].device().index();
  note_collective({call.type, index, call.peer, work.ticket(), coalescing_ > 0 ? batch_ : 0},
                  call.inputs, call.outputs, members(*this, options_->global_ranks_in_group),
                  getGroupUid());
  for (const auto& tensor : buffers(call.type, call.inputs, call.outputs)) {
    const auto serial = block_serial(tensor.storage().data());
    offramp::note(Kind::kCategory, index, kCommunication, serial, 0);
  }
}

void Collectives::settle(const Call& call, const std::function<void(c10d::Backend&)>& run) {
  size_t bytes = 0;
  bool known = call.type != c10d::OpType::RECV;
  for (const auto& tensor : call.inputs) {
    known = known && is_known(tensor);
    bytes += static_cast<size_t>(tensor.numel()) * tensor.itemsize();
  }
  for (const auto& tensor : call.outputs) {
    bytes += static_cast<size_t>(tensor.numel()) * tensor.itemsize();
  }
  const auto& moved = call.inputs.empty() ? call.outputs : call.inputs;
  known = known && !moved.empty() && bytes <= moved_bytes(moved[0].scalar_type());
  if (known) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const TapePause noted_already;
    run(*transport_);
  }
  set_known(call.outputs, known);
}

void Collectives::deliver(const Call& call, ChipWork& work) const {
  const bool sends = call.type == c10d::OpType::SEND;
  const auto& tensor = sends ? call.inputs[0] : call.outputs[0];
  if (!is_letter(tensor)) return;
  const auto ranks = members(*this, options_->global_ranks_in_group);
  const auto here = ranks[static_cast<size_t>(getRank())];
  const auto there = ranks[static_cast<size_t>(call.peer)];
  if (sends) {
    post_letter({getGroupUid(), here, there}, tensor);
  } else {
    work.on_wait(letter_for({getGroupUid(), there, here}, tensor));
  }
}

void Collectives::startCoalescing() {
  static std::atomic<uint64_t> batches{0};
  if (coalescing_++ == 0) batch_ = ++batches;
}

Collectives::Result Collectives::submit(Call call, std::function<void(c10d::Backend&)> run) {
  auto work = begin(call);
  const bool joined = coalescing_ > 0;
  if (joined) {
    const std::lock_guard<std::mutex> lock(mutex_);
    coalesced_.push_back(work);
  }
  note(call, *work);
  if (rehearsing()) {
    settle(call, run);
    work->complete(nullptr);
    return work;
  }
  lane_->run(
      [this, work, gloo = transport_, call, run = std::move(run),
       self = c10::intrusive_ptr<Collectives>::unsafe_reclaim_from_nonowning(this)] {
        const at::AutoDispatchBelowADInplaceOrView below_autograd;
        try {
          run(*gloo);
          work->complete(nullptr);
        } catch (...) {
          failed_ = true;
          work->complete(explained(std::current_exception(), describe(call)));
        }
      },
      !call.asynchronous && !joined);
  return work;
}

Collectives::Result Collectives::pass(const Call& call, const std::function<Result()>& post) {
  auto work = begin(call);
  if (coalescing_ > 0) {
    const std::lock_guard<std::mutex> lock(mutex_);
    coalesced_.push_back(work);
  }
  note(call, *work);
  if (rehearsing()) {
    settle(call, [](c10d::Backend&) {});
    deliver(call, *work);
    work->complete(nullptr);
    return work;
  }
  auto posted = post();
  run_in_crew([this, work, posted, call,
               self = c10::intrusive_ptr<Collectives>::unsafe_reclaim_from_nonowning(this)] {
    try {
      posted->wait();
      work->complete(nullptr);
    } catch (...) {
      failed_ = true;
      work->complete(explained(std::current_exception(), describe(call)));
    }
  });
  return work;
}

Collectives::Result Collectives::endCoalescing() {
  const std::lock_guard<std::mutex> lock(mutex_);
  TORCH_CHECK(coalescing_ > 0, "no coalescing was started");
  if (--coalescing_ > 0 || coalesced_.empty()) return {};
  return c10::make_intrusive<ManyWorks>(getRank(), std::exchange(coalesced_, {}));
}

void Collectives::setTimeout(std::chrono::milliseconds timeout) {
  options_->timeout = timeout;
  transport_->setTimeout(timeout);
}

c10d::ErrorType Collectives::getError() {
  return failed_ ? c10d::ErrorType::COMM_ERROR : c10d::ErrorType::SUCCESS;
}

void Collectives::abort() {
  aborted_ = true;
  std::vector<c10::intrusive_ptr<ChipWork>> works;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& each : begun_) {
      if (auto work = each.lock()) works.push_back(std::move(work));
    }
  }
  for (const auto& work : works) work->abort();
}

void Collectives::shutdown() {
  lane_->drain(options_->timeout);
  aborted_ = true;
}

void Collectives::finish_pending() { lane_->drain(options_->timeout); }

c10::intrusive_ptr<c10d::Backend> Collectives::split(
    const c10::intrusive_ptr<c10d::Store>& store, const std::vector<int>& ranks,
    const c10::intrusive_ptr<Backend::Options>& options) {
  ++splits_;
  const auto found = std::find(ranks.begin(), ranks.end(), getRank());
  if (found == ranks.end()) return {};
  auto own = c10::dynamic_intrusive_pointer_cast<Options>(options);
  TORCH_CHECK(own, "expected options of ProcessGroupNCCL");
  return c10::make_intrusive<Collectives>(connect(store, static_cast<int>(found - ranks.begin()),
                                                  static_cast<int>(ranks.size()), own->timeout),
                                          own);
}

}  // namespace offramp
