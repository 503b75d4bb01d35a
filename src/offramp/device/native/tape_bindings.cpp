// What Python sees of the tape and of rehearsals.
#include <c10/core/StorageImpl.h>
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "chip.h"
#include "letters.h"
#include "rehearse.h"
#include "tape.h"

namespace py = pybind11;

namespace offramp {

void bind_tape(py::module_& m) {
  m.def("start_tape", &start_tape);
  m.def("drain_tape", [] {
    auto reel = drain_tape();
    py::list groups;
    for (const auto& group : reel.groups) {
      py::dict row;
      row["ranks"] = group.ranks;
      row["name"] = group.name;
      groups.append(row);
    }
    return py::make_tuple(py::bytes(reel.records), reel.signatures, groups);
  });
  m.def("enter_module", &enter_module);
  m.def("current_module", &current_module);
  m.def("enter_phase", [](int phase) { enter_phase(static_cast<Phase>(phase)); });
  m.def("note_mark", [](int device, uint32_t name, uint64_t which) {
    note(Kind::kMark, device, name, which, 0);
  });
  m.def("note_host",
        [](uint64_t nanoseconds) { note(Kind::kHost, current_device(), 0, nanoseconds, 0); });
  m.def("block_serial", [](uintptr_t address) {
    const auto* storage = reinterpret_cast<c10::StorageImpl*>(address);
    return block_serial(storage->data());
  });
  m.def("is_known", [](uintptr_t address) {
    return is_known_at(reinterpret_cast<c10::StorageImpl*>(address)->data());
  });
  m.def("note_category", [](int device, uint64_t block, uint32_t category) {
    note(Kind::kCategory, device, category, block, 0);
  });
  m.def("rehearse",
        [](size_t known_bytes, double kept) { rehearsal() = {true, known_bytes, kept}; });
  m.def("rehearsing", &rehearsing);
  m.def("share_letters", &share_letters, py::arg("folder"));
  m.def("declared_answers", &declared_answers);
  m.def("follow_clock", [](py::function seconds) {
    auto* kept = new py::function(std::move(seconds));  // called until the process ends
    chip_seconds = [kept](uint64_t event) {
      const py::gil_scoped_acquire gil;
      return (*kept)(event).cast<double>();
    };
  });
}

}  // namespace offramp
