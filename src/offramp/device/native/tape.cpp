#include "tape.h"

#include <ATen/SequenceNumber.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/function.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "chip.h"

namespace offramp {

std::function<double(uint64_t)> chip_seconds;

namespace {

std::atomic<bool> on{false};
thread_local int paused = 0;
thread_local uint32_t tls_module = 0;
thread_local Phase tls_phase = Phase::kOther;

struct Tape {
  std::mutex mutex;
  std::vector<Record> records;
  std::unordered_map<uint64_t, uint32_t> signatures;
  std::vector<std::string> new_signatures;
  std::map<std::pair<std::vector<int64_t>, std::string>, uint32_t> groups;
  std::vector<Group> new_groups;
};

Tape& tape() {
  static auto* instance = new Tape;  // kernels outlive static destruction
  return *instance;
}

// Which module made which node of autograd's graph: nodes are numbered by the thread that makes
// them, so the numbers at which a thread changed modules tell it of each.
using Changes = std::vector<std::pair<uint64_t, uint32_t>>;

struct Makers {
  std::mutex mutex;
  std::unordered_map<uint64_t, Changes> by_thread;
};

Makers& makers() {
  static auto* instance = new Makers;
  return *instance;
}

uint32_t maker_of(const torch::autograd::Node& node) {
  auto& all = makers();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.by_thread.find(node.thread_id());
  if (found == all.by_thread.end()) return 0;
  const auto& changes = found->second;
  const auto after =
      std::upper_bound(changes.begin(), changes.end(), node.sequence_nr(),
                       [](uint64_t number, const auto& change) { return number < change.first; });
  return after == changes.begin() ? 0 : std::prev(after)->second;
}

void attribute(Record& record) {
  record.phase = tls_phase;
  record.module = tls_module;
  if (tls_phase != Phase::kOther) return;
  const auto node = torch::autograd::get_current_node();
  if (node == nullptr) {
    if (tls_module != 0) record.phase = Phase::kForward;
  } else if (tls_module != 0) {
    record.phase = Phase::kRecompute;
  } else {
    record.phase = Phase::kBackward;
    record.module = maker_of(*node);
  }
}

// What changes the chip's memory is noted whoever does it, or the tape's sums would not hold.
bool is_memory(Kind kind) {
  return (kind >= Kind::kAlloc && kind <= Kind::kUnreserve) || kind == Kind::kCategory;
}

}  // namespace

bool taping() { return on.load(std::memory_order_relaxed) && paused == 0; }

void start_tape() { on = true; }

Reel drain_tape() {
  auto& all = tape();
  const std::lock_guard<std::mutex> lock(all.mutex);
  Reel reel;
  reel.records.assign(reinterpret_cast<const char*>(all.records.data()),
                      all.records.size() * sizeof(Record));
  all.records.clear();
  reel.signatures.swap(all.new_signatures);
  reel.groups.swap(all.new_groups);
  return reel;
}

void note(Kind kind, int device, uint32_t what, uint64_t a, uint64_t b) {
  note_on(current_stream_id(device), kind, device, what, a, b);
}

void note_on(int64_t stream, Kind kind, int device, uint32_t what, uint64_t a, uint64_t b) {
  if (!taping() && !(on.load(std::memory_order_relaxed) && is_memory(kind))) return;
  Record record;
  record.kind = kind;
  record.device = static_cast<uint16_t>(device);
  record.stream = static_cast<uint32_t>(stream);
  record.what = what;
  record.a = a;
  record.b = b;
  attribute(record);
  auto& all = tape();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.records.push_back(record);
}

uint32_t signature_of(uint64_t key, const std::function<std::string()>& text) {
  auto& all = tape();
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto found = all.signatures.find(key);
    if (found != all.signatures.end()) return found->second;
  }
  auto made = text();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto number = static_cast<uint32_t>(all.signatures.size());
  const auto [place, is_new] = all.signatures.emplace(key, number);
  if (is_new) all.new_signatures.push_back(std::move(made));
  return place->second;
}

uint32_t group_of(const std::vector<int64_t>& ranks, const std::string& name) {
  auto& all = tape();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto number = static_cast<uint32_t>(all.groups.size());
  const auto [place, is_new] = all.groups.emplace(std::make_pair(ranks, name), number);
  if (is_new) all.new_groups.push_back({ranks, name});
  return place->second;
}

TapePause::TapePause() { ++paused; }
TapePause::~TapePause() { --paused; }

void enter_module(uint32_t name) {
  tls_module = name;
  if (torch::autograd::get_current_node() != nullptr && name == 0) return;
  auto& all = makers();
  const std::lock_guard<std::mutex> lock(all.mutex);
  auto& changes = all.by_thread[at::RecordFunction::currentThreadId()];
  const auto number = at::sequence_number::peek();
  if (!changes.empty() && changes.back().first == number) {
    changes.back().second = name;
  } else {
    changes.emplace_back(number, name);
  }
}

uint32_t current_module() { return tls_module; }

void enter_phase(Phase phase) { tls_phase = phase; }

}  // namespace offramp
