// What Python sees of the chip's process group: the class and options of NCCL's.
#include <pybind11/chrono.h>
#include <pybind11/functional.h>
#include <torch/csrc/utils/pybind.h>

#include "collectives.h"
#include "mirror.h"

namespace offramp {
namespace {

template <class T>
using Held = c10::intrusive_ptr<T>;
using Store = c10d::Store;

Held<Collectives> make(const Held<Store>& store, int rank, int size,
                       Held<Collectives::Options> options) {
  auto transport = Collectives::connect(store, rank, size, options->timeout);
  const py::gil_scoped_release no_gil;
  return c10::make_intrusive<Collectives>(std::move(transport), std::move(options));
}

void bind_config(py::module_& m) {
  using Config = CommunicatorConfig;
  py::class_<Config>(m, "NCCLConfig")
      .def(py::init<>())
      .def_readwrite("blocking", &Config::blocking)
      .def_readwrite("cga_cluster_size", &Config::cga_cluster_size)
      .def_readwrite("min_ctas", &Config::min_ctas)
      .def_readwrite("max_ctas", &Config::max_ctas)
      .def_readwrite("split_share", &Config::split_share)
      .def_readwrite("traffic_class", &Config::traffic_class)
      .def_readwrite("cta_policy", &Config::cta_policy)
      .def_readwrite("collnet_enable", &Config::collnet_enable)
      .def_readwrite("n_channels_per_net_peer", &Config::n_channels_per_net_peer)
      .def_readwrite("nvlink_centric_sched", &Config::nvlink_centric_sched)
      .def_readwrite("net_name", &Config::net_name)
      .def_readwrite("comm_name", &Config::comm_name)
      .def("__copy__", [](const Config& self) { return Config(self); })
      .def("__deepcopy__", [](const Config& self, const py::dict&) { return Config(self); });
}

void bind_options(py::handle scope) {
  using Options = Collectives::Options;
  const auto copy = [](const Options& self) { return c10::make_intrusive<Options>(self); };
  py::class_<Options, c10d::Backend::Options, Held<Options>>(scope, "Options")
      .def(py::init([](bool is_high_priority_stream) {
             auto made = c10::make_intrusive<Options>();
             made->is_high_priority_stream = is_high_priority_stream;
             return made;
           }),
           py::arg("is_high_priority_stream") = false)
      .def_readwrite("is_high_priority_stream", &Options::is_high_priority_stream)
      .def_readwrite("config", &Options::config)
      .def_readwrite("split_from", &Options::split_from)
      .def_readwrite("split_color", &Options::split_color)
      .def_readwrite("_backend_name", &Options::backend_name)
      .def("__copy__", copy)
      .def("__deepcopy__", [copy](const Options& self, const py::dict&) { return copy(self); });
}

}  // namespace

void bind_collectives(py::module_& m) {
  // The base classes, as PyTorch's own bindings made them.
  py::module_::import("torch._C._distributed_c10d");
  register_step_timer();
  bind_config(m);
  py::class_<Collectives, c10d::Backend, Held<Collectives>> group(m, "ProcessGroupNCCL");
  bind_options(group);
  const auto release = py::call_guard<py::gil_scoped_release>();
  group.def(py::init(&make), py::arg("store"), py::arg("rank"), py::arg("size"), py::arg("options"))
      .def(py::init(
               [](const Held<Store>& store, int rank, int size, std::chrono::milliseconds timeout) {
                 auto options = c10::make_intrusive<Collectives::Options>();
                 options->timeout = timeout;
                 return make(store, rank, size, std::move(options));
               }),
           py::arg("store"), py::arg("rank"), py::arg("size"),
           py::arg("timeout") = std::chrono::milliseconds(std::chrono::minutes(10)))
      .def_property_readonly("options", &Collectives::getBackendOptions)
      .def("_group_start", [](Collectives&) {})
      .def("_group_end", [](Collectives&) {})
      .def("_set_default_timeout",
           [](Collectives& self, std::chrono::milliseconds timeout) { self.setTimeout(timeout); })
      .def("_add_ephemeral_timeout", [](Collectives&, std::chrono::milliseconds) {})
      .def("_verify_work_timeout",
           [](Collectives& self, const py::object&, std::chrono::milliseconds timeout) {
             return self.getBackendOptions()->timeout == timeout;
           })
      .def("perform_nocolor_split", [](Collectives&, const py::object&) {})
      .def("comm_split_count", &Collectives::splits)
      .def("register_mem_pool", [](Collectives&, const py::args&, const py::kwargs&) {})
      .def("deregister_mem_pool", [](Collectives&, const py::args&) {})
      .def("_is_initialized", [](Collectives&) { return true; })
      .def("_wait_for_pending_works", &Collectives::finish_pending, release)
      .def_property_readonly("uid", [](Collectives& self) { return self.getGroupUid(); });
  group.attr("NCCL_CTA_POLICY_DEFAULT") = 0;
  group.attr("NCCL_CTA_POLICY_EFFICIENCY") = 1;
  group.attr("NCCL_CTA_POLICY_ZERO") = 2;
  group.attr("NCCL_SPLIT_NOCOLOR") = -1;
  py::class_<Mirror, c10d::Backend, Held<Mirror>>(m, "Mirror")
      .def(py::init([](const py::object&, int rank, int size, const py::kwargs&) {
             return c10::make_intrusive<Mirror>(rank, size);
           }),
           py::arg("store"), py::arg("rank"), py::arg("size"))
      .def_property_readonly("options", &Mirror::getBackendOptions);
  m.def("connect_groups_with", [](py::function connect) {
    auto* kept = new py::function(std::move(connect));  // called until the process ends
    Collectives::connect = [kept](const Held<Store>& store, int rank, int size,
                                  std::chrono::milliseconds timeout) {
      const py::gil_scoped_acquire gil;
      return (*kept)(store, rank, size, timeout).cast<Held<c10d::Backend>>();
    };
  });
}

}  // namespace offramp
