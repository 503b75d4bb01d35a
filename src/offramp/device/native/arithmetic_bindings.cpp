// The chip's arithmetic as Python sets it, and what it asks of it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "arithmetic.h"

namespace py = pybind11;

namespace offramp {
namespace {

// Reads integers and texts; what is left out stays as the host has it.
class Given {
 public:
  explicit Given(const py::dict& values) : values_(values) {}
  int64_t number(const std::string& name, int64_t otherwise = 0) const {
    return values_.contains(name) ? values_[name.c_str()].cast<int64_t>() : otherwise;
  }
  std::string text(const std::string& name) const {
    return values_.contains(name) ? values_[name.c_str()].cast<std::string>() : "";
  }
  Reduced format(const std::string& kind) const {
    return {static_cast<When>(number(kind + "_when")),
            static_cast<int>(number(kind + "_bits", kMantissa)),
            static_cast<int>(number(kind + "_products", 1)), text(kind + "_variable"),
            text(kind + "_off")};
  }

 private:
  const py::dict& values_;
};

// Settings as chips/arithmetic.py's `Arithmetic.native` writes them.
void set_arithmetic(const py::dict& values) {
  const Given given(values);
  auto& chosen = arithmetic();
  chosen.matmul = given.format("matmul");
  chosen.convolution = given.format("convolution");
  chosen.attention_too = given.number("attention_too") != 0;
  chosen.accumulate = static_cast<Narrow>(given.number("accumulate"));
  chosen.chunk = given.number("chunk");
  chosen.split_k = given.number("split_k");
  chosen.flush_to_zero = given.number("flush_to_zero") != 0;
  chosen.stochastic = given.number("stochastic") != 0;
  chosen.seed = static_cast<uint64_t>(given.number("seed"));
  chosen.exp_ulp = static_cast<int>(given.number("exp_ulp", -1));
  chosen.on = py::len(values) > 0;
  restart_rounding();
}

}  // namespace

void bind_arithmetic(py::module_& m) {
  m.def("set_arithmetic", &set_arithmetic);
  m.def("arithmetic_met", &settings_met);
}

}  // namespace offramp
