// The host's memory, which backs the chip's.
#pragma once

#include <cstddef>
#include <cstdint>

namespace offramp {

constexpr size_t kPage = 2ULL << 20;  // segments start at, and are, multiples of it

// Address space that the system backs page by page when it is first written.
char* reserve_pages(size_t bytes);
void release_pages(char* data, size_t bytes);

// Throws a RuntimeError (not an out-of-memory error of the chip: it has room) when the host
// could not back `bytes` more on top of what is reserved and not yet touched.
void check_host_can_back(size_t bytes, int device);

}  // namespace offramp
