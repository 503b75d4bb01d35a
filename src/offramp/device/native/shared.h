// Memory of the chip that other processes of this machine see.
#pragma once

#include <c10/core/Allocator.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <utility>

namespace offramp {

constexpr size_t kCounters = 65536;  // shares of one process that may be open at a time

// Where another process finds a block, and the counter that it takes down when it lets go.
struct Share {
  pid_t process;
  int file;
  size_t offset;
  size_t bytes;
  int counter_file;
  size_t counter;
};

// Moves the segment of the block at `data` to a file; the file's number and the block's offset in
// it. Nothing else may write to the segment meanwhile.
std::pair<int, size_t> share_block(const void* data);
// The segment is given back to the host.
void forget_shared(const char* segment);
c10::DataPtr receive_block(int index, const Share& share);

// This process's counters.
int counter_file();
int32_t read_counter(size_t counter);
void set_counter(size_t counter, int32_t value);
void release_counter(const Share& share);

}  // namespace offramp
