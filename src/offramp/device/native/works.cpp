#include "works.h"

#include <ATen/ThreadLocalState.h>
#include <ATen/core/ivalue.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <optional>
#include <set>
#include <thread>

#include "chip.h"
#include "tape.h"

namespace offramp {
namespace {

using Clock = std::chrono::steady_clock;
using Future = c10::ivalue::Future;

struct Crew {
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<std::function<void()>> tasks;
  size_t idle{0};

  void serve() {
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      ++idle;
      wake.wait(lock, [this] { return !tasks.empty(); });
      --idle;
      auto task = std::move(tasks.front());
      tasks.pop_front();
      lock.unlock();
      task();
      task = nullptr;
      lock.lock();
    }
  }
};

Crew& crew() {
  static auto* instance = new Crew;  // its threads outlive static destruction
  return *instance;
}

// The works that began and have not ended, for `wait_for_works`.
struct Unfinished {
  std::mutex mutex;
  std::condition_variable changed;
  std::set<uint64_t> works;
  uint64_t next{0};
};

Unfinished& unfinished() {
  static auto* instance = new Unfinished;
  return *instance;
}

uint64_t begin() {
  auto& all = unfinished();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.works.insert(++all.next);
  return all.next;
}

void end(uint64_t ticket) {
  auto& all = unfinished();
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    all.works.erase(ticket);
  }
  all.changed.notify_all();
}

int device_of(const Tensors& tensors) {
  for (const auto& tensor : tensors) {
    if (tensor.defined() && is_chip(tensor.device())) return tensor.device().index();
  }
  return current_device();
}

}  // namespace

void run_in_crew(std::function<void()> task) {
  auto& all = crew();
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    all.tasks.push_back(std::move(task));
    if (all.idle < all.tasks.size()) std::thread([&all] { all.serve(); }).detach();
  }
  all.wake.notify_one();
}

void wait_for_works() {
  auto& all = unfinished();
  std::unique_lock<std::mutex> lock(all.mutex);
  const auto begun = all.works;
  all.changed.wait(lock, [&] {
    return std::none_of(begun.begin(), begun.end(),
                        [&](uint64_t ticket) { return all.works.count(ticket) != 0; });
  });
}

void Lane::run(std::function<void()> task, bool here) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (busy_ || !here) {
      tasks_.push_back(std::move(task));
      if (busy_) return;
      busy_ = true;
      run_in_crew([self = shared_from_this()] { self->drive(); });
      return;
    }
    busy_ = true;
  }
  task();
  task = nullptr;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (tasks_.empty()) {
    busy_ = false;
    idle_.notify_all();
  } else {
    run_in_crew([self = shared_from_this()] { self->drive(); });
  }
}

void Lane::drive() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!tasks_.empty()) {
    auto task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    task = nullptr;
    lock.lock();
  }
  busy_ = false;
  idle_.notify_all();
}

bool Lane::drain(std::chrono::milliseconds limit) {
  std::unique_lock<std::mutex> lock(mutex_);
  return idle_.wait_for(lock, limit, [this] { return !busy_; });
}

// A future asked for: of the outputs, or of the outcome. Callbacks see the state of the thread that
// asked, as they do where futures complete at once.
struct ChipWork::Promise {
  c10::intrusive_ptr<Future> future;
  bool of_result{false};
  at::ThreadLocalState state;
};

ChipWork::ChipWork(int rank, c10d::OpType type, const char* title, Tensors inputs, Tensors outputs,
                   uint64_t sequence)
    : Work(rank, type, title, inputs),
      inputs_(std::move(inputs)),
      outputs_(std::move(outputs)),
      device_(device_of(outputs_.empty() ? inputs_ : outputs_)),
      sequence_(sequence),
      ticket_(begin()),
      started_(Clock::now()) {}

void ChipWork::complete(std::exception_ptr failure) {
  if (ended_.exchange(true)) return;
  Tensors inputs;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    took_ = Clock::now() - started_;
    inputs.swap(inputs_);
  }
  try {
    finish(std::move(failure));
  } catch (...) {  // a profiler's callback must not end the crew's thread
  }
  end(ticket_);
  std::vector<std::shared_ptr<Promise>> promises;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    promises.swap(promises_);
  }
  if (promises.empty()) return;
  // On another thread: a callback may wait for a collective that is queued behind this one.
  run_in_crew([self = c10::intrusive_ptr<ChipWork>::unsafe_reclaim_from_nonowning(this),
               promises = std::move(promises)] {
    for (const auto& promise : promises) self->fulfil(*promise);
  });
}

bool ChipWork::wait(std::chrono::milliseconds timeout) {
  // A barrier holds the host; other collectives hold the stream that waits for them.
  note(Kind::kWorkWait, device_, 0, ticket_, opType_ == c10d::OpType::BARRIER ? 1 : 0);
  if (const auto task = std::exchange(on_wait_, nullptr)) task();
  return Work::wait(timeout);
}

void ChipWork::abort() {
  complete(std::make_exception_ptr(
      C10_BUILD_ERROR(DistBackendError, "the process group was aborted before this call ended")));
}

namespace {

// While alive, this thread's stream is one on which a collective ends: whoever waits for what is
// recorded there, as for a future, waits for the collective.
class EndingStream {
 public:
  EndingStream(int index, uint64_t ticket) : guard_(chip().type) {
    constexpr int64_t first = 1 << 20, count = 64;  // taken in turn, as CUDA does with its pool
    const auto id = first + static_cast<int64_t>(ticket % count);
    previous_ = guard_.exchangeStream(c10::Stream(c10::Stream::UNSAFE, device(index), id));
    note(Kind::kWorkWait, index, 0, ticket, 0);
  }
  ~EndingStream() { guard_.exchangeStream(previous_); }
  EndingStream(const EndingStream&) = delete;
  EndingStream& operator=(const EndingStream&) = delete;

 private:
  c10::impl::VirtualGuardImpl guard_;
  c10::Stream previous_{c10::Stream::DEFAULT, device(0)};
};

}  // namespace

void ChipWork::fulfil(const Promise& promise) {
  const at::ThreadLocalStateGuard guard(promise.state);
  const int previous = current_device();
  set_current_device(device_);
  if (promise.of_result) {
    const auto outcome = exception_ ? c10d::WorkResult::COMM_ERROR : c10d::WorkResult::SUCCESS;
    promise.future->markCompleted(static_cast<int64_t>(outcome));
  } else if (exception_) {
    promise.future->setErrorIfNeeded(exception_);
  } else {
    std::optional<EndingStream> ending;
    if (taping()) ending.emplace(device_, ticket_);
    promise.future->markCompleted(outputs_);
  }
  set_current_device(previous);
}

c10::intrusive_ptr<Future> ChipWork::promise(bool of_result) {
  auto made = std::make_shared<Promise>();
  made->of_result = of_result;
  made->future = of_result
                     ? c10::make_intrusive<Future>(c10::IntType::get())
                     : c10::make_intrusive<Future>(c10::ListType::create(c10::TensorType::get()),
                                                   std::vector<c10::Device>{device(device_)});
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!completed_) {
      promises_.push_back(made);
      return made->future;
    }
  }
  fulfil(*made);
  return made->future;
}

c10::intrusive_ptr<Future> ChipWork::getFuture() { return promise(false); }
c10::intrusive_ptr<Future> ChipWork::getFutureResult() { return promise(true); }

float ChipWork::getDuration() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return took_.count();
}

bool ManyWorks::isCompleted() {
  return std::all_of(works_.begin(), works_.end(),
                     [](const auto& work) { return work->isCompleted(); });
}

bool ManyWorks::isSuccess() const { return exception() == nullptr; }

std::exception_ptr ManyWorks::exception() const {
  for (const auto& work : works_) {
    if (auto failure = work->exception()) return failure;
  }
  return nullptr;
}

std::vector<at::Tensor> ManyWorks::result() {
  Tensors all;
  for (const auto& work : works_) {
    for (auto& tensor : work->result()) all.push_back(tensor);
  }
  return all;
}

bool ManyWorks::wait(std::chrono::milliseconds timeout) {
  for (const auto& work : works_) work->wait(timeout);
  return true;
}

void ManyWorks::abort() {
  for (const auto& work : works_) work->abort();
}

c10::intrusive_ptr<Future> ManyWorks::getFuture() {
  std::vector<c10::intrusive_ptr<Future>> parts;
  for (const auto& work : works_) parts.push_back(work->getFuture());
  auto all = c10::make_intrusive<Future>(c10::ListType::create(c10::TensorType::get()),
                                         std::vector<c10::Device>{device(device_of(result()))});
  run_in_crew([all, parts, outputs = result()] {
    std::exception_ptr failure;
    for (const auto& part : parts) {
      part->wait();
      if (part->hasError()) failure = part->exception_ptr();
    }
    const int previous = current_device();
    set_current_device(device_of(outputs));
    if (failure) {
      all->setErrorIfNeeded(failure);
    } else {
      all->markCompleted(outputs);
    }
    set_current_device(previous);
  });
  return all;
}

}  // namespace offramp
