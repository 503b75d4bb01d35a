#include "ledger.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <map>
#include <new>
#include <tuple>

#include "host.h"
#include "rehearse.h"
#include "shared.h"
#include "tape.h"

namespace offramp {
namespace {

using c10::CachingAllocator::StatArray;
using c10::CachingAllocator::StatType;

// PyTorch's CUDA caching allocator, c10/core/AllocatorConfig.h and CUDACachingAllocator.cpp.
constexpr size_t kMinBlock = 512;           // every size is a multiple of this
constexpr size_t kSmallLimit = 1ULL << 20;  // up to here a request is served from small segments
constexpr size_t kSmallSegment = 2ULL << 20;
constexpr size_t kLargeSegment = 20ULL << 20;  // what requests below kOwnSegment share
constexpr size_t kOwnSegment = 10ULL << 20;    // from here a request gets a segment of its own
constexpr size_t kSegmentRound = 2ULL << 20;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Finds a block by its address: a table of the address space's pages, each with a table of the
// places where a block may start. Only the parts that are in use take memory.
using Place = std::atomic<Block*>;
using Page = std::atomic<Place*>;
constexpr size_t kAddresses = 1ULL << 47;
constexpr size_t kPlaces = kPage / kMinBlock;

Page& page_of(const void* data) {
  static Page* const pages = [] {
    void* table = mmap(nullptr, kAddresses / kPage * sizeof(Page), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (table == MAP_FAILED) throw std::bad_alloc();
    return static_cast<Page*>(table);
  }();
  return pages[reinterpret_cast<uintptr_t>(data) % kAddresses / kPage];
}

void enter_segment(char* data, size_t bytes) {
  auto* places = static_cast<Place*>(std::calloc(bytes / kMinBlock, sizeof(Place)));
  if (places == nullptr) throw std::bad_alloc();
  for (size_t at = 0; at < bytes; at += kPage) page_of(data + at) = places + at / kMinBlock;
}

void leave_segment(char* data, size_t bytes) {
  std::free(page_of(data).load());
  for (size_t at = 0; at < bytes; at += kPage) page_of(data + at) = nullptr;
}

void enter_block(Block* block) {
  page_of(block->data).load()[reinterpret_cast<uintptr_t>(block->data) / kMinBlock % kPlaces] =
      block;
}

size_t segment_size(size_t size) {
  if (size <= kSmallLimit) return kSmallSegment;
  return size < kOwnSegment ? kLargeSegment : round_up(size, kSegmentRound);
}

uint64_t taped_bytes(const Block* block) {
  return tapes_requested_bytes ? block->requested : block->size;
}

}  // namespace

bool tapes_requested_bytes = false;

Block* block_at(const void* data) {
  const Place* places = page_of(data).load(std::memory_order_acquire);
  if (places == nullptr) return nullptr;
  return places[reinterpret_cast<uintptr_t>(data) / kMinBlock % kPlaces].load(
      std::memory_order_acquire);
}

bool Ledger::BySize::operator()(const Block* a, const Block* b) const {
  return std::tie(a->stream, a->size, a->data) < std::tie(b->stream, b->size, b->data);
}

void Ledger::open(int device, uint64_t capacity_bytes) {
  device_ = device;
  capacity_ = limit_ = capacity_bytes;
}

void Ledger::count(StatArray& stat, bool small, int64_t amount) {
  const auto kind = static_cast<size_t>(small ? StatType::SMALL_POOL : StatType::LARGE_POOL);
  for (size_t i : {static_cast<size_t>(StatType::AGGREGATE), kind}) {
    if (amount >= 0) {
      stat[i].increase(static_cast<size_t>(amount));
    } else {
      stat[i].decrease(static_cast<size_t>(-amount));
    }
  }
}

Block* Ledger::allocate(size_t bytes, int64_t stream, const char* origin) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const size_t size = std::max(round_up(bytes, kMinBlock), kMinBlock);
  const bool small = size <= kSmallLimit;
  Block* block = find(size, stream, small);
  if (block == nullptr) block = grow(size, stream, small);
  if (block == nullptr) {
    stats_.num_alloc_retries += 1;
    give_back_cached(true);
    block = grow(size, stream, small, rehearsing());  // which tells by how much it does not fit
  }
  if (block == nullptr) {
    stats_.num_ooms += 1;
    return nullptr;
  }
  take(block, size, bytes, origin);
  return block;
}

// Best fit among the cached blocks of one stream.
Block* Ledger::find(size_t size, int64_t stream, bool small) {
  Block key;
  key.stream = stream;
  key.size = size;
  auto& blocks = pool(small);
  const auto found = blocks.lower_bound(&key);
  if (found == blocks.end() || (*found)->stream != stream) return nullptr;
  Block* block = *found;
  blocks.erase(found);
  return block;
}

Block* Ledger::grow(size_t size, int64_t stream, bool small, bool beyond) {
  const size_t bytes = segment_size(size);
  const auto reserved = static_cast<uint64_t>(stats_.reserved_bytes[0].current);
  if (reserved + bytes > limit_ && !beyond) return nullptr;
  if (!rehearsing()) check_host_can_back(bytes, device_);
  auto* block = new Block;
  block->device = device_;
  block->stream = stream;
  block->size = bytes;
  block->small = small;
  block->data = reserve_pages(bytes);
  enter_segment(block->data, bytes);
  segments_.insert(block);
  stats_.num_device_alloc += 1;
  count(stats_.segment, small, 1);
  count(stats_.reserved_bytes, small, static_cast<int64_t>(bytes));
  note_on(stream, Kind::kReserve, device_, 0, bytes, 0);
  return block;
}

void Ledger::take(Block* block, size_t size, size_t requested, const char* origin) {
  const bool small = block->small;
  const size_t rest = block->size - size;
  count_piece(block, -1);
  if (small ? rest >= kMinBlock : rest > kSmallLimit) {
    auto* tail = new Block(*block);
    tail->size = rest;
    tail->data = block->data + size;
    tail->previous = block;
    if (tail->next != nullptr) tail->next->previous = tail;
    block->next = tail;
    block->size = size;
    pool(small).insert(tail);
    count_piece(tail, 1);
  }
  block->in_use = true;
  block->requested = requested;
  block->origin = origin;
  enter_block(block);
  const auto bytes = static_cast<int64_t>(block->size);
  count(stats_.allocation, small, 1);
  count(stats_.allocated_bytes, small, bytes);
  count(stats_.active, small, 1);
  count(stats_.active_bytes, small, bytes);
  count(stats_.requested_bytes, small, static_cast<int64_t>(requested));
  static std::atomic<uint64_t> blocks{0};
  block->serial = ++blocks;
  block->known = false;
  note_on(block->stream, Kind::kAlloc, device_, 0, block->serial, taped_bytes(block));
}

void Ledger::release(Block* block) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const bool small = block->small;
  const auto bytes = static_cast<int64_t>(block->size);
  count(stats_.allocation, small, -1);
  count(stats_.allocated_bytes, small, -bytes);
  count(stats_.active, small, -1);
  count(stats_.active_bytes, small, -bytes);
  count(stats_.requested_bytes, small, -static_cast<int64_t>(block->requested));
  block->in_use = false;
  note_on(block->stream, Kind::kFree, device_, 0, block->serial, taped_bytes(block));
  if (Block* left = block->previous; left != nullptr && !left->in_use) {
    pool(small).erase(left);
    count_piece(left, -1);
    absorb(left, block);
    block = left;
  }
  if (Block* right = block->next; right != nullptr && !right->in_use) {
    pool(small).erase(right);
    count_piece(right, -1);
    absorb(block, right);
  }
  count_piece(block, 1);
  pool(small).insert(block);
}

// A free block that is only part of its segment counts as an inactive split block.
void Ledger::count_piece(const Block* block, int64_t sign) {
  if (block->previous == nullptr && block->next == nullptr) return;
  count(stats_.inactive_split, block->small, sign);
  count(stats_.inactive_split_bytes, block->small, sign * static_cast<int64_t>(block->size));
}

void Ledger::absorb(Block* left, Block* right) {
  left->size += right->size;
  left->next = right->next;
  if (left->next != nullptr) left->next->previous = left;
  delete right;
}

// In the midst of work it waits, as cudaFree does, for what the device has to do.
void Ledger::give_back_cached(bool forced) {
  bool waited = false;
  for (const bool small : {true, false}) {
    auto& blocks = pool(small);
    for (auto it = blocks.begin(); it != blocks.end();) {
      Block* block = *it;
      if (block->previous != nullptr || block->next != nullptr) {
        ++it;
        continue;
      }
      it = blocks.erase(it);
      segments_.erase(block);
      if (forced && !waited) note(Kind::kSyncDevice, device_, 0, 0, 0);
      waited = true;
      leave_segment(block->data, block->size);
      forget_shared(block->data);
      release_pages(block->data, block->size);
      stats_.num_device_free += 1;
      note_on(block->stream, Kind::kUnreserve, device_, 0, block->size, forced ? 1 : 0);
      count(stats_.segment, small, -1);
      count(stats_.reserved_bytes, small, -static_cast<int64_t>(block->size));
      delete block;
    }
  }
}

void Ledger::empty_cache() {
  const std::lock_guard<std::mutex> lock(mutex_);
  give_back_cached(false);
}

c10::CachingDeviceAllocator::DeviceStats Ledger::stats() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return stats_;
}

void Ledger::reset(void (c10::CachingAllocator::Stat::*what)()) {
  for (auto* stats : {&stats_.allocation, &stats_.segment, &stats_.active, &stats_.inactive_split,
                      &stats_.allocated_bytes, &stats_.reserved_bytes, &stats_.active_bytes,
                      &stats_.inactive_split_bytes, &stats_.requested_bytes}) {
    for (auto& stat : *stats) (stat.*what)();
  }
}

void Ledger::reset_peaks() {
  const std::lock_guard<std::mutex> lock(mutex_);
  reset(&c10::CachingAllocator::Stat::reset_peak);
}

void Ledger::reset_accumulated() {
  const std::lock_guard<std::mutex> lock(mutex_);
  reset(&c10::CachingAllocator::Stat::reset_accumulated);
  stats_.num_alloc_retries = stats_.num_ooms = 0;
}

void Ledger::set_fraction(double fraction) {
  const std::lock_guard<std::mutex> lock(mutex_);
  limit_ = static_cast<uint64_t>(fraction * static_cast<double>(capacity_));
}

std::vector<Holding> Ledger::holdings() {
  std::map<std::string, Holding> by_origin;
  for (const Block& block : snapshot()) {
    if (!block.in_use) continue;
    auto& holding = by_origin[block.origin];
    holding.origin = block.origin;
    holding.blocks += 1;
    holding.bytes += static_cast<int64_t>(block.size);
  }
  std::vector<Holding> result;
  for (auto& [origin, holding] : by_origin) result.push_back(holding);
  std::sort(result.begin(), result.end(),
            [](const Holding& a, const Holding& b) { return a.bytes > b.bytes; });
  return result;
}

std::vector<Block> Ledger::snapshot() {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Block> blocks;
  for (const Block* head : segments_) {
    for (const Block* block = head; block != nullptr; block = block->next) blocks.push_back(*block);
  }
  return blocks;
}

}  // namespace offramp
