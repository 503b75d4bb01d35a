// The name of the private device, as Python reads it: its own, or `cuda`.
//
// Python sees a device through the type `torch.device` alone, whatever the object came from. So
// that type answers: `type`, repr, str and pickles give the name in use, and the two names of one
// device are equal and hash alike. `Tensor.is_cuda` is the one property that asks elsewhere.
#include <Python.h>
#include <c10/core/Device.h>
#include <torch/csrc/Device.h>
#include <torch/csrc/Event.h>
#include <torch/csrc/Generator.h>
#include <torch/csrc/Stream.h>
#include <torch/csrc/autograd/python_variable.h>

#include <array>
#include <atomic>
#include <cctype>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "chip.h"
#include "route.h"

namespace offramp {
namespace {

std::atomic<Spelling> current{Spelling::kPlain};
std::mutex mutex;
// Devices that Python made from "cuda" while nothing was decided.
std::vector<THPDevice*> undecided;

newfunc device_new = nullptr;
getter tensor_is_cuda = nullptr;

bool reads_cuda() {
  const auto chosen = current.load(std::memory_order_relaxed);
  return chosen == Spelling::kUndecided || chosen == Spelling::kCuda;
}

c10::Device& inside(PyObject* object) { return reinterpret_cast<THPDevice*>(object)->device; }

std::string name_of(c10::Device d) {
  const bool called_cuda = d.type() == kPrivate && reads_cuda();
  return called_cuda ? "cuda" : c10::DeviceTypeName(d.type(), /*lower_case=*/true);
}

PyObject* text(const std::string& value) { return PyUnicode_FromString(value.c_str()); }

PyObject* read_type(PyObject* self, void*) { return text(name_of(inside(self))); }

PyObject* read_repr(PyObject* self) {
  const auto d = inside(self);
  const auto index = d.has_index() ? ", index=" + std::to_string(d.index()) : std::string();
  return text("device(type='" + name_of(d) + "'" + index + ")");
}

PyObject* read_str(PyObject* self) {
  const auto d = inside(self);
  return text(name_of(d) + (d.has_index() ? ":" + std::to_string(d.index()) : std::string()));
}

PyObject* reduce(PyObject* self, PyObject*) {
  const auto d = inside(self);
  const auto name = name_of(d);
  auto* made_by = reinterpret_cast<PyObject*>(Py_TYPE(self));
  if (!d.has_index()) return Py_BuildValue("O(s)", made_by, name.c_str());
  return Py_BuildValue("O(si)", made_by, name.c_str(), static_cast<int>(d.index()));
}

Py_hash_t hash(PyObject* self) {
  const auto value = static_cast<Py_hash_t>(std::hash<c10::Device>{}(routed(inside(self))) >> 1);
  return value;
}

PyObject* compare(PyObject* a, PyObject* b, int op) {
  if (!THPDevice_Check(a) || !THPDevice_Check(b)) Py_RETURN_NOTIMPLEMENTED;
  if (op != Py_EQ && op != Py_NE) {
    PyErr_SetString(PyExc_TypeError, "devices have no order");
    return nullptr;
  }
  return PyBool_FromLong((routed(inside(a)) == routed(inside(b))) == (op == Py_EQ));
}

bool spelled_out(PyObject* args, PyObject* kwargs) {
  PyObject* first = PyTuple_GET_SIZE(args) > 0 ? PyTuple_GET_ITEM(args, 0) : nullptr;
  for (const char* name : {"type", "device"}) {
    if (first == nullptr && kwargs != nullptr) first = PyDict_GetItemString(kwargs, name);
  }
  return first != nullptr && PyUnicode_Check(first);
}

// `torch.device(...)`: where CUDA's name is in use the device is the private one from the start,
// so that C++ which keeps devices by their type finds it. Before that is known it waits.
PyObject* make_device(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  PyObject* made = device_new(type, args, kwargs);
  if (made == nullptr || !THPDevice_Check(made)) return made;
  auto& device = inside(made);
  const auto chosen = current.load();
  if (device.type() == kPrivate && chosen == Spelling::kUndecided) {
    if (spelled_out(args, kwargs)) {
      decide(Spelling::kOwn);
    } else {
      device = c10::Device(kCuda, device.index());
    }
  }
  if (device.type() != kCuda) return made;
  if (chosen == Spelling::kCuda) device = routed(device);
  if (chosen == Spelling::kUndecided) {
    const std::lock_guard<std::mutex> lock(mutex);
    Py_INCREF(made);  // for good: few are made so early
    undecided.push_back(reinterpret_cast<THPDevice*>(made));
  }
  return made;
}

// Types of Python that take a device first and ask no operator: their constructors, wrapped.
struct Placed {
  PyTypeObject* type;
  newfunc make;
};
std::array<Placed, 3> placed{};

newfunc maker_of(PyTypeObject* type) {
  for (const auto& known : placed) {
    if (PyType_IsSubtype(type, known.type)) return known.make;
  }
  return nullptr;
}

// `torch.Event("cuda")` must be of the type of the streams that record it; generators and
// streams show which name the program uses.
PyObject* make_placed(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  const newfunc make = maker_of(type);
  PyObject* given = PyTuple_GET_SIZE(args) > 0 ? PyTuple_GET_ITEM(args, 0) : nullptr;
  if (given == nullptr && kwargs != nullptr) given = PyDict_GetItemString(kwargs, "device");
  if (given == nullptr || given == Py_None) return make(type, args, kwargs);
  PyObject* device = PyObject_CallOneArg(reinterpret_cast<PyObject*>(&THPDeviceType), given);
  if (device == nullptr) return nullptr;
  if (inside(device).type() == kCuda) {
    decide(Spelling::kCuda);
    Py_SETREF(device, THPDevice_New(routed(inside(device))));
  }
  PyObject* rest = PyTuple_GetSlice(args, 1, PyTuple_GET_SIZE(args));
  PyObject* positional = PyTuple_New(PyTuple_GET_SIZE(rest) + 1);
  PyTuple_SET_ITEM(positional, 0, device);
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(rest); ++i) {
    PyTuple_SET_ITEM(positional, i + 1, Py_NewRef(PyTuple_GET_ITEM(rest, i)));
  }
  Py_DECREF(rest);
  PyObject* named = kwargs != nullptr ? PyDict_Copy(kwargs) : PyDict_New();
  if (PyDict_GetItemString(named, "device") != nullptr) PyDict_DelItemString(named, "device");
  PyObject* made = make(type, positional, named);
  Py_DECREF(positional);
  Py_DECREF(named);
  return made;
}

void wrap_constructors() {
  placed = {{{THPEventClass, nullptr},
             {THPStreamClass, nullptr},
             {reinterpret_cast<PyTypeObject*>(THPGeneratorClass), nullptr}}};
  for (auto& known : placed) {
    known.make = known.type->tp_new;
    known.type->tp_new = make_placed;
  }
}

PyObject* read_is_cuda(PyObject* self, void* closure) {
  PyObject* answer = tensor_is_cuda(self, closure);
  if (answer != Py_False || !reads_cuda() || !THPVariable_Check(self)) return answer;
  return PyBool_FromLong(THPVariable_Unpack(self).unsafeGetTensorImpl()->is_privateuseone());
}

void put(PyTypeObject* type, const char* name, PyObject* value) {
  PyDict_SetItemString(type->tp_dict, name, value);
  Py_DECREF(value);
  PyType_Modified(type);
}

// `repr(d)` reads the slot and `d.__repr__()` this wrapper of it.
template <class Function>
void put_slot(Function& slot, Function value, std::vector<const char*> names) {
  slot = value;
  for (const char* name : names) {
    PyObject* wrapper = PyDict_GetItemString(THPDeviceType.tp_dict, name);
    if (wrapper == nullptr || Py_TYPE(wrapper) != &PyWrapperDescr_Type) continue;
    reinterpret_cast<PyWrapperDescrObject*>(wrapper)->d_wrapped = reinterpret_cast<void*>(value);
  }
  PyType_Modified(&THPDeviceType);
}

}  // namespace

Spelling spelling() { return current.load(); }

void spell(Spelling chosen) {
  const std::lock_guard<std::mutex> lock(mutex);
  current = chosen;
  if (chosen == Spelling::kUndecided || chosen == Spelling::kPlain) return;
  if (chosen == Spelling::kCuda) {
    for (auto* waiting : undecided) waiting->device = routed(waiting->device);
    undecided.clear();
  }
  if (chip().is_open) {
    auto own = c10::DeviceTypeName(kPrivate, /*lower_case=*/false);
    for (auto& letter : own) letter = static_cast<char>(std::toupper(letter));
    chip().brand = chosen == Spelling::kCuda ? "CUDA" : own;
  }
}

void decide(Spelling chosen) {
  if (current.load(std::memory_order_relaxed) == Spelling::kUndecided) spell(chosen);
}

void install_spelling() {
  if (device_new != nullptr) return;
  auto& type = THPDeviceType;
  device_new = type.tp_new;
  type.tp_new = make_device;
  put_slot<reprfunc>(type.tp_repr, read_repr, {"__repr__"});
  put_slot<reprfunc>(type.tp_str, read_str, {"__str__"});
  put_slot<hashfunc>(type.tp_hash, hash, {"__hash__"});
  put_slot<richcmpfunc>(type.tp_richcompare, compare, {"__eq__", "__ne__"});
  static PyGetSetDef type_property{"type", read_type, nullptr, nullptr, nullptr};
  put(&type, "type", PyDescr_NewGetSet(&type, &type_property));
  static PyMethodDef reduce_method{"__reduce__", reduce, METH_NOARGS, nullptr};
  put(&type, "__reduce__", PyDescr_NewMethod(&type, &reduce_method));
  wrap_constructors();

  auto* tensor = reinterpret_cast<PyTypeObject*>(THPVariableClass)->tp_base;
  PyObject* before = PyDict_GetItemString(tensor->tp_dict, "is_cuda");
  tensor_is_cuda = reinterpret_cast<PyGetSetDescrObject*>(before)->d_getset->get;
  static PyGetSetDef is_cuda{"is_cuda", read_is_cuda, nullptr, nullptr, nullptr};
  put(tensor, "is_cuda", PyDescr_NewGetSet(tensor, &is_cuda));
}

}  // namespace offramp
