// Memory of the chip that several processes see, as CUDA's memory handles give it: pages move to an
// anonymous file, which another process of this machine maps through /proc.
//
// A sender keeps what it shared until the receivers let go: each share has a counter, one of a page
// that both sides map.
#include "shared.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "chip.h"
#include "host.h"
#include "ledger.h"

namespace offramp {
namespace {

using Counter = std::atomic<int32_t>;
constexpr size_t kCounterBytes = kCounters * sizeof(Counter);

struct File {
  explicit File(int number) : number(number) {}
  ~File() { close(number); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int number;
};

void* map_shared(int file, size_t offset, size_t bytes, void* at = nullptr) {
  void* data = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | (at != nullptr ? MAP_FIXED : 0),
                    file, static_cast<off_t>(offset));
  TORCH_CHECK(data != MAP_FAILED, "The host cannot map memory that is shared between processes: ",
              std::strerror(errno));
  return data;
}

int anonymous_file(size_t bytes) {
  const int file = memfd_create("offramp", MFD_CLOEXEC);
  TORCH_CHECK(file >= 0 && ftruncate(file, static_cast<off_t>(bytes)) == 0,
              "The host gives no memory to share between processes: ", std::strerror(errno));
  return file;
}

File open_of(pid_t process, int file) {
  const auto path = c10::str("/proc/", process, "/fd/", file);
  const int opened = open(path.c_str(), O_RDWR | O_CLOEXEC);
  TORCH_CHECK(opened >= 0, "A tensor of ", chip().name, " was received from process ", process,
              ", whose memory cannot be opened (", std::strerror(errno),
              "). Keep the sending process alive until its tensors were received.");
  return File(opened);
}

std::mutex mutex;

// The first byte of a segment to its file.
std::map<const char*, std::unique_ptr<File>>& files() {
  static auto* files = new std::map<const char*, std::unique_ptr<File>>;
  return *files;
}

struct CounterPage {
  int file;
  Counter* counters;
};

CounterPage& own_page() {
  static CounterPage page = [] {
    const int file = anonymous_file(kCounterBytes);
    return CounterPage{file, static_cast<Counter*>(map_shared(file, 0, kCounterBytes))};
  }();
  return page;
}

// Another process's counters stay mapped: there is one page a sender.
Counter* counters_of(pid_t process, int file) {
  if (process == getpid()) return own_page().counters;
  static std::map<std::pair<pid_t, int>, Counter*> pages;
  const std::lock_guard<std::mutex> lock(mutex);
  auto& page = pages[{process, file}];
  if (page == nullptr) {
    page = static_cast<Counter*>(map_shared(open_of(process, file).number, 0, kCounterBytes));
  }
  return page;
}

struct Received {
  void* data;
  size_t bytes;
  Counter* counter;
};

void let_go(void* context) {
  const std::unique_ptr<Received> received(static_cast<Received*>(context));
  munmap(received->data, received->bytes);
  received->counter->fetch_sub(1);
}

}  // namespace

std::pair<int, size_t> share_block(const void* data) {
  const Block* block = block_at(data);
  TORCH_CHECK(block != nullptr, "Attempted to send a tensor of ", chip().name,
              " that was received from another process; this is not supported. Send a clone.");
  const Block* first = block;
  while (first->previous != nullptr) first = first->previous;
  const auto offset = static_cast<size_t>(block->data - first->data);
  const std::lock_guard<std::mutex> lock(mutex);
  auto& file = files()[first->data];
  if (!file) {
    size_t bytes = 0;
    for (const Block* part = first; part != nullptr; part = part->next) bytes += part->size;
    auto made = std::make_unique<File>(anonymous_file(bytes));
    void* copy = map_shared(made->number, 0, bytes);
    std::memcpy(copy, first->data, bytes);
    munmap(copy, bytes);
    map_shared(made->number, 0, bytes, first->data);
    file = std::move(made);
  }
  return {file->number, offset};
}

void forget_shared(const char* segment) {
  const std::lock_guard<std::mutex> lock(mutex);
  files().erase(segment);
}

c10::DataPtr receive_block(int index, const Share& share) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t ahead = share.offset % page;
  auto* counter = counters_of(share.process, share.counter_file) + share.counter;
  const auto file = open_of(share.process, share.file);
  void* data = map_shared(file.number, share.offset - ahead, share.bytes + ahead);
  auto* received = new Received{data, share.bytes + ahead, counter};
  return {static_cast<char*>(data) + ahead, received, &let_go, device(index)};
}

int counter_file() { return own_page().file; }

int32_t read_counter(size_t counter) { return own_page().counters[counter].load(); }

void set_counter(size_t counter, int32_t value) { own_page().counters[counter].store(value); }

void release_counter(const Share& share) {
  counters_of(share.process, share.counter_file)[share.counter].fetch_sub(1);
}

}  // namespace offramp
