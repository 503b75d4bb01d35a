#include "host.h"

#include <c10/util/Exception.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>

#include "chip.h"

namespace offramp {
namespace {

constexpr uint64_t kUnknown = std::numeric_limits<uint64_t>::max();
constexpr uint64_t kMargin = 512ULL << 20;  // left to the rest of the process and the system
std::atomic<int64_t> reserved_bytes{0};

uint64_t read_number(const char* path) {
  std::ifstream file(path);
  uint64_t value = 0;
  return file >> value ? value : kUnknown;
}

uint64_t meminfo_available() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  uint64_t kib = 0;
  while (file >> key >> kib) {
    if (key == "MemAvailable:") return kib * 1024;
    std::getline(file, unit);
  }
  return kUnknown;
}

uint64_t control_group_available() {
  uint64_t limit = read_number("/sys/fs/cgroup/memory.max");
  uint64_t used = read_number("/sys/fs/cgroup/memory.current");
  if (limit == kUnknown) {
    limit = read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    used = read_number("/sys/fs/cgroup/memory/memory.usage_in_bytes");
  }
  if (limit == kUnknown || used == kUnknown) return kUnknown;
  return limit > used ? limit - used : 0;
}

// Pages of this process that are in memory and belong to no file.
uint64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  uint64_t total = 0, resident = 0, shared = 0;
  if (!(file >> total >> resident >> shared)) return 0;
  return (resident - shared) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

std::string gib(uint64_t bytes) {
  std::ostringstream text;
  text.precision(2);
  text << std::fixed << static_cast<double>(bytes) / (1ULL << 30) << " GiB";
  return text.str();
}

}  // namespace

char* reserve_pages(size_t bytes) {
  const size_t whole = bytes + kPage;
  void* data = mmap(nullptr, whole, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  TORCH_CHECK(data != MAP_FAILED, "The host gives no address space for ", gib(bytes),
              " of the virtual chip's memory: ", std::strerror(errno));
  reserved_bytes += static_cast<int64_t>(bytes);
  auto* start = static_cast<char*>(data);
  const size_t ahead = (kPage - reinterpret_cast<uintptr_t>(data) % kPage) % kPage;
  if (ahead > 0) munmap(start, ahead);
  munmap(start + ahead + bytes, kPage - ahead);
  return start + ahead;
}

void release_pages(char* data, size_t bytes) {
  munmap(data, bytes);
  reserved_bytes -= static_cast<int64_t>(bytes);
}

void check_host_can_back(size_t bytes, int device) {
  static const uint64_t resident_at_start = resident_bytes();
  const uint64_t available = std::min(meminfo_available(), control_group_available());
  if (available == kUnknown) return;
  const uint64_t resident = resident_bytes();
  const uint64_t touched = resident > resident_at_start ? resident - resident_at_start : 0;
  const auto reserved = static_cast<uint64_t>(reserved_bytes.load());
  const uint64_t promised = reserved > touched ? reserved - touched : 0;
  TORCH_CHECK(bytes + promised + kMargin <= available, "The host has too little memory to back ",
              "the virtual chip: ", gib(bytes), " more were asked for on ", offramp::device(device),
              ", ", gib(promised), " are reserved and not yet written, ", "and the host has ",
              gib(available), " left. The chip itself (", chip().name, ", ",
              gib(chip().memory_bytes), ") still has room, so this is no out-of-memory of the ",
              "chip. Use a smaller model or batch, or a machine with more memory.");
}

}  // namespace offramp
