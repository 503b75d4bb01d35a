// What Python may call. Tensors do not pass here: they go through PyTorch itself.
#include <c10/core/DeviceType.h>
#include <c10/core/StorageImpl.h>
#include <c10/util/Exception.h>
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Device.h>
#include <torch/csrc/Generator.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "allocator.h"
#include "chip.h"
#include "generator.h"
#include "ledger.h"
#include "operators.h"
#include "rehearse.h"
#include "route.h"
#include "shared.h"
#include "tape.h"

namespace py = pybind11;

namespace offramp {

void bind_arithmetic(py::module_& m);   // arithmetic_bindings.cpp
void bind_collectives(py::module_& m);  // group_bindings.cpp
void bind_tape(py::module_& m);         // tape_bindings.cpp

namespace {

void open(const std::string& name, const std::string& brand, const std::string& kind, int count,
          uint64_t memory_bytes) {
  TORCH_CHECK(!chip().is_open, "this process already plays ", chip().name);
  TORCH_CHECK(count > 0 && count <= kMaxDevices, "a process plays 1 to ", kMaxDevices,
              " chips, not ", count);
  // Overriding PyTorch's composite kernels is meant here; it need not warn of it.
  struct Silent final : c10::WarningHandler {
    void process(const c10::Warning&) override {}
  } silent;
  const c10::WarningUtils::WarningHandlerGuard quiet(&silent);
  chip() = {
      name,  brand,        kind == "cuda" ? c10::DeviceType::CUDA : c10::DeviceType::PrivateUse1,
      count, memory_bytes, true};
  register_allocator();
  register_guard();
  register_hooks();
  cover_torch();
  register_boxed(dense_key(), c10::DispatchKey::CPU);
  register_boxed(sparse_key(), c10::DispatchKey::SparseCPU);
  register_boxed(sparse_csr_key(), c10::DispatchKey::SparseCsrCPU);
  register_boxed(nested_key(), c10::DispatchKey::NestedTensorCPU);
  register_own_operators();
  register_autocast();
}

std::map<std::string, int64_t> operator_counts() {
  std::map<std::string, int64_t> counts;
  for (const auto* op : operators_called()) counts[op->name] = op->calls;
  return counts;
}

std::map<std::string, std::pair<std::string, int64_t>> operators_refused() {
  std::map<std::string, std::pair<std::string, int64_t>> refused;
  for (const auto& [op, reason, count] : refusals()) refused[op] = {reason, count};
  return refused;
}

std::map<std::string, int64_t> formats_used() {
  std::map<std::string, int64_t> counts;
  for (int i = 0; i < static_cast<int>(c10::ScalarType::NumOptions); ++i) {
    const int64_t count = format_counts()[static_cast<size_t>(i)];
    if (count > 0) counts[c10::toString(static_cast<c10::ScalarType>(i))] = count;
  }
  return counts;
}

std::vector<std::string> scalar_types() {
  std::vector<std::string> names;
  for (int i = 0; i < static_cast<int>(c10::ScalarType::NumOptions); ++i) {
    names.emplace_back(c10::toString(static_cast<c10::ScalarType>(i)));
  }
  return names;
}

// `address` is a StorageImpl, as `torch.UntypedStorage._cdata` gives it. Keeps what fits.
void resize_storage(uintptr_t address, size_t bytes) {
  auto* storage = reinterpret_cast<c10::StorageImpl*>(address);
  TORCH_CHECK(storage->resizable(), "Trying to resize storage that is not resizable");
  const int index = storage->device().index();
  auto memory = allocate_on(index, bytes);
  // Who frees and gives back a storage keeps gathered weights in it (FSDP).
  note(Kind::kCategory, index, kCommunication, block_serial(memory.get()), 0);
  const size_t kept = std::min(bytes, storage->nbytes());
  move_bytes(memory.get(), storage->data(), kept);
  storage->set_data_ptr_noswap(std::move(memory));
  storage->set_nbytes(bytes);
}

std::pair<int, size_t> share_storage(uintptr_t address) {
  return share_block(reinterpret_cast<c10::StorageImpl*>(address)->data());
}

// Gives the storage at `address` memory of another process.
void receive_storage(uintptr_t address, const Share& share) {
  auto* storage = reinterpret_cast<c10::StorageImpl*>(address);
  storage->set_data_ptr_noswap(receive_block(storage->device().index(), share));
  storage->set_nbytes(share.bytes);
}

py::list snapshot(int index) {
  py::list blocks;
  for (const Block& block : ledger(index).snapshot()) {
    py::dict row;
    row["address"] = reinterpret_cast<uintptr_t>(block.data);
    row["size"] = block.size;
    row["requested_size"] = block.requested;
    row["stream"] = block.stream;
    row["state"] = block.in_use ? "active_allocated" : "inactive";
    row["segment_type"] = block.small ? "small" : "large";
    row["segment_start"] = block.previous == nullptr;
    row["origin"] = block.in_use ? block.origin : "";
    blocks.append(row);
  }
  return blocks;
}

}  // namespace
}  // namespace offramp

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace offramp;
  m.def("open", &open);
  m.def("refuse_formats", &refuse_formats);
  m.def("tape_requested_bytes", [] { tapes_requested_bytes = true; });
  m.def("declare_missing", &declare_missing);
  m.def("operator_counts", &operator_counts);
  m.def("operators_refused", &operators_refused);
  m.def("formats_used", &formats_used);
  m.def("in_forked_child", &in_forked_child);
  m.def("set_device", &set_current_device);
  m.def("current_device", &current_device);
  m.def("capacity_bytes", [](int i) { return ledger(i).capacity_bytes(); });
  m.def("set_memory_fraction", [](int i, double f) { ledger(i).set_fraction(f); });
  m.def("elapsed_ms", &elapsed_ms);
  m.def("memory_fraction", [](int i) {
    return static_cast<double>(ledger(i).limit_bytes()) /
           static_cast<double>(ledger(i).capacity_bytes());
  });
  m.def("set_count", [](int count) {
    TORCH_CHECK(count >= 0 && count <= chip().count, "only ", chip().count, " chips are there");
    chip().count = count;
  });
  m.def("default_generator", [](int i) {
    return py::reinterpret_steal<py::object>(THPGenerator_Wrap(default_generator(i)));
  });
  m.def("empty_cache", [](int i) { ledger(i).empty_cache(); });
  m.def("snapshot", &snapshot);
  m.def("scalar_types", &scalar_types);
  m.def("lead_cuda", [] {
    install_spelling();
    register_routes();
  });
  m.def("spell", [](int chosen) { spell(static_cast<Spelling>(chosen)); });
  m.def("decide", [](int chosen) { decide(static_cast<Spelling>(chosen)); });
  m.def("spelling", [] { return static_cast<int>(spelling()); });
  m.def("private_device", [](int index) {
    return py::reinterpret_steal<py::object>(
        THPDevice_New({kPrivate, static_cast<c10::DeviceIndex>(index)}));
  });
  m.def("resize_storage", &resize_storage);
  m.def("choose_threads", &choose_threads);
  py::class_<Share>(m, "Share")
      .def(py::init<pid_t, int, size_t, size_t, int, size_t>())
      .def("release", &release_counter);
  m.def("share_storage", &share_storage);
  m.def("receive_storage", &receive_storage);
  m.def("counter_file", &counter_file);
  m.def("read_counter", &read_counter);
  m.def("set_counter", &set_counter);
  m.attr("COUNTERS") = kCounters;
  m.def("cover_library", &cover_library);
  bind_tape(m);
  bind_arithmetic(m);
  m.def("bind_collectives", [m]() mutable { bind_collectives(m); });
  m.def("explain_out_of_memory_with", [](py::function explain) {
    auto* kept = new py::function(std::move(explain));  // called until the process ends
    explain_out_of_memory_with([kept](int index) {
      const py::gil_scoped_acquire gil;
      return (*kept)(index).cast<std::string>();
    });
  });
}
