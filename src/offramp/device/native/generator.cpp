#include "generator.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <c10/core/GeneratorImpl.h>
#include <c10/util/Exception.h>

#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>

#include "chip.h"

namespace offramp {
namespace {

constexpr uint64_t kStep = 4;  // offsets are multiples of 4, as CUDA's are
constexpr int64_t kWord = sizeof(uint64_t);

// splitmix64, the finalizer (Steele, Lea, Flood 2014).
uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// What generators of one sequence of draws share.
struct DrawState {
  uint64_t seed{c10::default_rng_seed_val};
  std::atomic<uint64_t> offset{0};
};

class ChipGenerator final : public c10::GeneratorImpl {
 public:
  explicit ChipGenerator(int index,
                         std::shared_ptr<DrawState> state = std::make_shared<DrawState>())
      : GeneratorImpl(offramp::device(index), c10::DispatchKeySet(dense_key())),
        state_(std::move(state)) {}

  void set_current_seed(uint64_t seed) override {
    state_->seed = seed;
    state_->offset = 0;
  }
  void set_offset(uint64_t offset) override { state_->offset = offset; }
  uint64_t get_offset() const override { return state_->offset; }
  uint64_t current_seed() const override { return state_->seed; }
  uint64_t seed() override {
    set_current_seed(c10::detail::getNonDeterministicRandom(true));
    return state_->seed;
  }

  void set_state(const c10::TensorImpl& state) override {
    at::detail::check_rng_state(state);
    const auto bytes = state.numel();
    TORCH_CHECK(bytes == 2 * kWord || bytes == kWord, "RNG state is wrong size: ", bytes,
                " bytes, expected ", 2 * kWord, " (seed and offset)");
    const auto* words = static_cast<const char*>(state.data());
    std::memcpy(&state_->seed, words, kWord);
    uint64_t offset = 0;
    if (bytes > kWord) std::memcpy(&offset, words + kWord, kWord);
    state_->offset = offset;
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    const at::Tensor state(at::detail::empty_cpu({2 * kWord}, at::kByte));
    const uint64_t words[] = {state_->seed, state_->offset};
    std::memcpy(state.mutable_data_ptr(), words, sizeof(words));
    return state.getIntrusivePtr();
  }

  // What PyTorch's compiler exchanges where a graph draws again what it drew before: the sequence
  // itself, not a copy of where it stands.
  c10::intrusive_ptr<c10::GeneratorImpl> graphsafe_get_state() const override {
    return c10::make_intrusive<ChipGenerator>(device().index(), state_);
  }
  void graphsafe_set_state(const c10::intrusive_ptr<c10::GeneratorImpl>& other) override {
    const auto* generator = dynamic_cast<const ChipGenerator*>(other.get());
    TORCH_CHECK(generator != nullptr, "expected a generator of ", chip().name);
    state_ = generator->state_;
  }

  uint64_t take() { return state_->offset.fetch_add(kStep); }
  void give_back(uint64_t offset) {  // unless another thread has drawn since
    uint64_t after = offset + kStep;
    state_->offset.compare_exchange_strong(after, offset);
  }

 private:
  ChipGenerator* clone_impl() const override {
    auto* clone = new ChipGenerator(device().index());
    clone->state_->seed = state_->seed;
    clone->state_->offset = state_->offset.load();
    return clone;
  }
  c10::Device device() const { return device_; }

  std::shared_ptr<DrawState> state_;
};

// A CPU generator whose numbers are a function of seed and offset.
at::Generator host_generator(uint64_t seed, uint64_t offset) {
  auto host = at::detail::createCPUGenerator(seed);
  if (offset == 0) return host;  // what the CPU draws first from this seed
  at::mt19937 engine;
  auto data = engine.data();
  uint64_t x = mixed(seed) ^ offset;
  for (auto& word : data.state_) word = static_cast<uint32_t>(mixed(x += 0x9e3779b97f4a7c15));
  engine.set_data(data);
  host.get<at::CPUGeneratorImpl>()->set_engine(engine);
  return host;
}

ChipGenerator& of_chip(const at::Generator& generator) {
  TORCH_CHECK(is_chip(generator.device()), "Expected a '", device(0).type(),
              "' device type for generator but found '", generator.device().type(), "'");
  return *static_cast<ChipGenerator*>(generator.unsafeGetGeneratorImpl());
}

at::Generator make(int index) { return at::make_generator<ChipGenerator>(index); }

std::mutex seed_mutex;

at::Generator& default_host_generator() {
  return const_cast<at::Generator&>(at::detail::getDefaultCPUGenerator());
}

}  // namespace

const at::Generator& default_generator(int index) {
  static std::array<at::Generator, kMaxDevices> generators;
  static std::once_flag once;
  std::call_once(once, [] {
    for (int i = 0; i < chip().count; ++i) generators[i] = make(i);
  });
  const int chosen = index < 0 ? current_device() : index;
  TORCH_CHECK(chosen < chip().count, "invalid device ordinal ", chosen, ": this process has ",
              chip().count, " of ", chip().name);
  return generators[chosen];
}

at::Generator new_generator(int index) { return make(index < 0 ? current_device() : index); }

Draws::Draws(at::Generator generator)
    : chip_(std::move(generator)),
      offset_(of_chip(chip_).take()),
      host_(host_generator(chip_.current_seed(), offset_)) {}

Draws::~Draws() {
  constexpr int kUntouched = 1;  // what an engine has left before it makes its first numbers
  if (host_.get<at::CPUGeneratorImpl>()->engine().data().left_ == kUntouched) {
    of_chip(chip_).give_back(offset_);
  }
}

// Kernels without a generator argument read the process's default CPU generator; it is exchanged
// for the time of the call, one call at a time.
SeedScope::SeedScope(int index) : draws_(default_generator(index)), replaced_(draws_.host()) {
  seed_mutex.lock();
  std::swap(default_host_generator(), replaced_);
}

SeedScope::~SeedScope() {
  std::swap(default_host_generator(), replaced_);
  seed_mutex.unlock();
}

}  // namespace offramp
