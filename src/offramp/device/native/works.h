// Collectives in flight: what runs them, and the handles that programs wait on.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <vector>

namespace offramp {

using Tensors = std::vector<at::Tensor>;

// Runs `task` on a thread of a crew that grows as tasks block. Its threads never end.
void run_in_crew(std::function<void()> task);

// A group's queue. Collectives of one group run one after another in the order of their calls, as
// a communicator's stream has them.
class Lane : public std::enable_shared_from_this<Lane> {
 public:
  // Runs `task` after those before it: on this thread when none is and `here`, else in the crew.
  void run(std::function<void()> task, bool here);
  // Waits until the queue is empty; false when that took longer than `limit`.
  bool drain(std::chrono::milliseconds limit);

 private:
  void drive();

  std::mutex mutex_;
  std::condition_variable idle_;
  std::deque<std::function<void()>> tasks_;
  bool busy_{false};
};

// The handle of one collective. Waiting blocks the calling thread until the values are there.
class ChipWork final : public c10d::Work {
 public:
  ChipWork(int rank, c10d::OpType type, const char* title, Tensors inputs, Tensors outputs,
           uint64_t sequence);

  std::vector<at::Tensor> result() override { return outputs_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override;
  c10::intrusive_ptr<c10::ivalue::Future> getFutureResult() override;
  uint64_t getSequencenumber() const override { return sequence_; }
  bool wait(std::chrono::milliseconds timeout) override;
  uint64_t ticket() const { return ticket_; }
  // What the first wait does before it returns.
  void on_wait(std::function<void()> task) { on_wait_ = std::move(task); }
  float getDuration() const override;
  // Ends the work from outside: a later `complete` is ignored.
  void abort() override;

  // Called once, by whoever ran the collective.
  void complete(std::exception_ptr failure);

 private:
  struct Promise;
  c10::intrusive_ptr<c10::ivalue::Future> promise(bool result);
  void fulfil(const Promise& promise);

  Tensors inputs_;  // held so that no memory is given back while it is read
  Tensors outputs_;
  int device_;
  uint64_t sequence_;
  uint64_t ticket_;
  std::function<void()> on_wait_;
  std::atomic<bool> ended_{false};
  std::chrono::steady_clock::time_point started_;
  std::chrono::duration<float, std::milli> took_{0};
  std::vector<std::shared_ptr<Promise>> promises_;
};

// Many works behind one handle: what a coalesced group of calls returns.
class ManyWorks final : public c10d::Work {
 public:
  ManyWorks(int rank, std::vector<c10::intrusive_ptr<c10d::Work>> works)
      : Work(rank, c10d::OpType::COALESCED), works_(std::move(works)) {}
  bool isCompleted() override;
  bool isSuccess() const override;
  std::exception_ptr exception() const override;
  std::vector<at::Tensor> result() override;
  bool wait(std::chrono::milliseconds timeout) override;
  void synchronize() override { wait(kNoTimeout); }
  void abort() override;
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override;

 private:
  std::vector<c10::intrusive_ptr<c10d::Work>> works_;
};

}  // namespace offramp
