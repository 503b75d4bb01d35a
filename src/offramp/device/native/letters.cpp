#include "letters.h"

#include <c10/core/ScalarType.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "rehearse.h"

namespace offramp {
namespace {

constexpr char kKnown = 'k', kUnknown = 'u';
constexpr std::chrono::microseconds kShortest{200}, kLongest{10000};  // between two looks

struct LetterBox {
  std::filesystem::path folder;
  std::mutex mutex;
  std::map<std::string, uint64_t> sent, awaited;  // messages of each way so far
};

LetterBox& letter_box() {
  static auto* instance = new LetterBox;
  return *instance;
}

std::string name_of_next(const Way& way, std::map<std::string, uint64_t>& counts) {
  const auto group = std::to_string(std::hash<std::string>{}(way.group));
  const auto name = group + "-" + std::to_string(way.from) + "-" + std::to_string(way.to);
  const std::lock_guard<std::mutex> lock(letter_box().mutex);
  return name + "-" + std::to_string(counts[name]++);
}

void leave(const std::filesystem::path& path, const std::string& text) {
  const auto name = "." + path.filename().string() + "-" + std::to_string(::getpid());
  const auto scratch = path.parent_path() / name;
  {
    std::ofstream file(scratch, std::ios::binary);
    file.write(text.data(), static_cast<std::streamsize>(text.size()));
    TORCH_CHECK(file.good(), "cannot write ", scratch.string());
  }
  std::filesystem::rename(scratch, path);
}

size_t size_of(const at::Tensor& tensor) {
  return static_cast<size_t>(tensor.numel()) * tensor.itemsize();
}

// Blocks until the letter is there; empty where its sender has ended without one.
std::string awaited_letter(const std::filesystem::path& path, int64_t from) {
  const auto& folder = letter_box().folder;
  const auto ended = folder / ("ended-" + std::to_string(from));
  bool said = false;
  for (auto pause = kShortest;; pause = std::min(pause * 2, kLongest)) {
    const bool is_last = std::filesystem::exists(ended);  // asked first: nothing comes after it
    std::ifstream file(path, std::ios::binary);
    if (file) return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (is_last) return {};
    if (!std::exchange(said, true)) leave(folder / ("wanted-" + std::to_string(from)), "");
    std::this_thread::sleep_for(pause);
  }
}

}  // namespace

void share_letters(const std::string& folder) { letter_box().folder = folder; }

bool is_letter(const at::Tensor& tensor) {
  const auto type = tensor.scalar_type();
  return !letter_box().folder.empty() && c10::isIntegralType(type, /*includeBool=*/true) &&
         tensor.is_contiguous() && size_of(tensor) <= moved_bytes(type);
}

void post_letter(const Way& way, const at::Tensor& tensor) {
  auto& box = letter_box();
  const auto path = box.folder / name_of_next(way, box.sent);
  if (!is_known(tensor)) return leave(path, {kUnknown});
  const auto* data = static_cast<const char*>(tensor.const_data_ptr());
  leave(path, kKnown + std::string(data, size_of(tensor)));
}

std::function<void()> letter_for(const Way& way, const at::Tensor& tensor) {
  auto& box = letter_box();
  return [path = box.folder / name_of_next(way, box.awaited), from = way.from, tensor] {
    const auto text = awaited_letter(path, from);
    if (text.empty() || text[0] != kKnown || text.size() != size_of(tensor) + 1) return;
    std::memcpy(tensor.mutable_data_ptr(), text.data() + 1, text.size() - 1);
    set_known(tensor, true);
  };
}

}  // namespace offramp
