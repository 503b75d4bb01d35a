// The chip's memory as a caching allocator keeps it: which blocks are in use, which are cached.
//
// Sizes, pools and the order of attempts are those of PyTorch's CUDA caching allocator
// (c10/cuda/CUDACachingAllocator), because programs read its figures and tune to them.
#pragma once

#include <c10/core/CachingDeviceAllocator.h>

#include <cstdint>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace offramp {

struct Block {
  int device{0};
  int64_t stream{0};
  size_t size{0};
  size_t requested{0};
  char* data{nullptr};
  bool in_use{false};
  bool small{false};
  Block* previous{nullptr};  // neighbours within one segment
  Block* next{nullptr};
  const char* origin{""};  // the operator that asked for it
  uint64_t serial{0};      // its number on the tape
  bool known{false};       // in a rehearsal: its values are there
};

// Whether the tape has the bytes that were asked for, and not those of their block: a chip that is
// the host itself has the system's allocator, and no blocks.
extern bool tapes_requested_bytes;

// The block that starts at `data`, or nullptr when the chip has none there.
Block* block_at(const void* data);

// What one origin holds at this moment.
struct Holding {
  std::string origin;
  int64_t blocks{0};
  int64_t bytes{0};
};

class Ledger {
 public:
  void open(int device, uint64_t capacity_bytes);

  // Returns a block of at least `bytes`, or nullptr when the chip is full even after every
  // cached segment was given back; in a rehearsal, a block beyond the chip's memory then. Throws
  // when the host cannot back a new segment.
  Block* allocate(size_t bytes, int64_t stream, const char* origin);
  void release(Block* block);
  void empty_cache();

  c10::CachingDeviceAllocator::DeviceStats stats();
  void reset_peaks();
  void reset_accumulated();
  void set_fraction(double fraction);
  uint64_t capacity_bytes() const { return capacity_; }
  uint64_t limit_bytes() const { return limit_; }
  std::vector<Holding> holdings();
  std::vector<Block> snapshot();

 private:
  struct BySize {
    bool operator()(const Block* a, const Block* b) const;
  };
  using Pool = std::set<Block*, BySize>;
  Pool& pool(bool small) { return small ? small_ : large_; }
  Block* find(size_t size, int64_t stream, bool small);
  Block* grow(size_t size, int64_t stream, bool small, bool beyond = false);
  void take(Block* block, size_t size, size_t requested, const char* origin);
  void absorb(Block* left, Block* right);
  void give_back_cached(bool forced);
  void count(c10::CachingAllocator::StatArray& stat, bool small, int64_t amount);
  void count_piece(const Block* block, int64_t sign);
  void reset(void (c10::CachingAllocator::Stat::*what)());

  std::mutex mutex_;
  Pool small_;
  Pool large_;
  std::set<Block*> segments_;  // the first block of each
  c10::CachingDeviceAllocator::DeviceStats stats_;
  int device_{0};
  uint64_t capacity_{0};
  uint64_t limit_{0};
};

}  // namespace offramp
