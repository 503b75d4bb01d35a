// The tape: what this process did on its chips, in the order of the host's calls.
//
// A record is 32 bytes; what is long is written once into tables and named by its number. The
// layout and the kinds are those of offramp.tape.tape, which reads them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace offramp {

enum class Kind : uint8_t {
  kOp = 0,
  kAlloc = 1,
  kFree = 2,
  kReserve = 3,
  kUnreserve = 4,
  kRecord = 5,
  kWait = 6,
  kSyncEvent = 7,
  kSyncStream = 8,
  kSyncDevice = 9,
  kCollective = 10,
  kWorkWait = 11,
  kMark = 12,
  kHost = 13,
  kReadback = 14,
  kCategory = 15,
};

enum class Phase : uint8_t {
  kOther = 0,
  kForward = 1,
  kBackward = 2,
  kOptimizer = 3,
  kData = 4,
  kRecompute = 5,
};

// What a block holds, where it is known at once; offramp.tape.tape has the others.
constexpr uint32_t kCommunication = 6;

struct Record {
  Kind kind{Kind::kOp};
  Phase phase{Phase::kOther};
  uint16_t device{0};
  uint32_t stream{0};
  uint32_t what{0};
  uint32_t module{0};
  uint64_t a{0};
  uint64_t b{0};
};
static_assert(sizeof(Record) == 32);

struct Group {
  std::vector<int64_t> ranks;
  std::string name;
};

// Everything since the last call.
struct Reel {
  std::string records;
  std::vector<std::string> signatures;
  std::vector<Group> groups;
};

// Whether this process keeps a tape; nothing below costs more than this question while it does not.
bool taping();
void start_tape();
Reel drain_tape();

// Adds a record; phase, module, and the current stream of the device are filled in.
void note(Kind kind, int device, uint32_t what, uint64_t a, uint64_t b);
void note_on(int64_t stream, Kind kind, int device, uint32_t what, uint64_t a, uint64_t b);

// The number of a signature's text in its table. `text` is called once for each key.
uint32_t signature_of(uint64_t key, const std::function<std::string()>& text);
uint32_t group_of(const std::vector<int64_t>& ranks, const std::string& name);

// While alive on this thread, only memory is noted: for work that the chip would not do.
class TapePause {
 public:
  TapePause();
  ~TapePause();
  TapePause(const TapePause&) = delete;
  TapePause& operator=(const TapePause&) = delete;
};

// Who is at work on this thread. A backward pass works for the module whose forward pass made its
// node; see tape.cpp.
void enter_module(uint32_t name);
uint32_t current_module();
void enter_phase(Phase phase);

// The seconds on the chip's clock at which a recorded event is reached; set where there is a clock.
extern std::function<double(uint64_t event)> chip_seconds;

}  // namespace offramp
