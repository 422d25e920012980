#include "views.hpp"

#include "shared.hpp"

#include <pybind11/numpy.h>

#include <utility>
#include <vector>

namespace py = pybind11;

namespace gradstep {
namespace {

struct Version {
  std::uint32_t major, minor;
};

struct ExchangeAPI {
  Version version;
  const ExchangeAPI* older;
  void* allocate;
  void* managed_from_python;
  void* managed_to_python;
  int (*from_python)(void* object, dlpack::Tensor* tensor);  // may be null
  void* current_work_stream;
};

// The exchange API of a class, or null.
const ExchangeAPI* find_exchange_api(PyTypeObject* type) {
  const auto capsule = py::reinterpret_steal<py::object>(
      PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__"));
  const void* pointer = capsule ? PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api") : nullptr;
  PyErr_Clear();
  const auto* api = static_cast<const ExchangeAPI*>(pointer);
  while (api && api->version.major != 1) api = api->older;
  return api && api->from_python ? api : nullptr;
}

// The same, remembered. The classes are kept alive, so that no other one can come to lie at their address.
const ExchangeAPI* exchange_api(PyTypeObject* type) {
  static std::vector<std::pair<PyTypeObject*, const ExchangeAPI*>> known;  // guarded by the GIL, and short
  for (const auto& [one, api] : known)
    if (one == type) return api;
  constexpr std::size_t most = 16;
  const ExchangeAPI* const api = find_exchange_api(type);
  if (known.size() < most) {
    Py_INCREF(type);
    known.emplace_back(type, api);
  }
  return api;
}

std::string type_name(const py::handle& object) { return text(py::type::of(object).attr("__name__")); }

}  // namespace

bool look(PyObject* object, dlpack::Tensor& tensor) {
  const ExchangeAPI* const api = exchange_api(Py_TYPE(object));
  if (!api) return false;
  if (api->from_python(object, &tensor) != 0) {
    PyErr_Clear();
    return false;
  }
  return true;
}

void refuse_without_memory(const py::handle& object, const std::string& name) {
  throw py::value_error(name + " is a " + type_name(object) +
                        " without memory of its own: steps update memory in place, so pass the tensors that hold the "
                        "numbers");
}

bool is_negated(const py::handle& object) {
  return py::hasattr(object, "is_neg") && object.attr("is_neg")().cast<bool>();
}

bool is_contiguous(const dlpack::Tensor& tensor) {
  if (!tensor.strides || element_count(tensor) == 0) return true;
  std::int64_t step = 1;
  for (std::int32_t i = tensor.ndim; i-- > 0; step *= tensor.shape[i])
    if (tensor.shape[i] != 1 && tensor.strides[i] != step) return false;
  return true;
}

bool shows_memory(const py::handle& object) {
  if (py::isinstance<py::array>(object)) return true;
  if (py::isinstance(object, py::module_::import("numpy").attr("generic"))) return false;
  return py::hasattr(object, "__dlpack__") || PyObject_CheckBuffer(object.ptr());
}

py::object view(const py::object& object, const std::string& name) {
  if (py::isinstance<py::array>(object)) return object;
  if (!shows_memory(object))
    throw py::type_error(name + " must be a numpy.ndarray, or expose a CPU buffer or DLPack, got " + type_name(object));
  const py::module_ numpy = py::module_::import("numpy");
  try {
    if (!py::hasattr(object, "__dlpack__")) return numpy.attr("asarray")(py::memoryview(object));
    const py::tuple device = object.attr("__dlpack_device__")();
    if (device[0].cast<int>() != dlpack::cpu)
      throw py::value_error(name + " must lie in the memory of the CPU, got DLPack's device " + text(device));
    if (is_negated(object)) throw py::value_error(name + " is a negated view; resolve_neg() makes an array of it");
    return numpy.attr("from_dlpack")(object);
  } catch (py::error_already_set& error) {
    const bool is_error = error.matches(PyExc_Exception);
    if (!is_error) throw;  // Ctrl-C
    const std::string dtype = py::hasattr(object, "dtype") ? " of dtype " + text(object.attr("dtype")) : "";
    py::raise_from(error, PyExc_TypeError,
                   (name + " must expose its memory, float32 or float64 on the CPU, got " + type_name(object) + dtype +
                    ": " + text(error.value()))
                       .c_str());
    throw py::error_already_set();
  }
}

}  // namespace gradstep
