// The native module: checks memory, lets go of Python, calls the kernels.
//
// A Plan checks everything that can be wrong before the first write, so that a call that raises has changed nothing.
// Python has checked the structure of the arguments (optimizers.py) and gives every array a label for the messages.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "levels.hpp"
#include "math.hpp"
#include "threads.hpp"

namespace py = pybind11;
using namespace gradstep;

namespace {

std::string text(const py::handle& object) { return py::str(object).cast<std::string>(); }

// The specs are those of every level; only a step asks for the active one.
const Entry& find_rule(const std::string& name, const Table& table = baseline::table()) {
  for (int i = 0; i < table.size; ++i)
    if (name == table.entries[i].spec.name) return table.entries[i];
  throw py::key_error(name);
}

int hyper_count(const Spec& spec) {
  return static_cast<int>(std::find_if(spec.hyper, spec.hyper + max_hyper, [](Hyper h) { return !h.name; }) -
                          spec.hyper);
}

int state_count(const Spec& spec) {
  return static_cast<int>(std::find(spec.states, spec.states + max_states, nullptr) - spec.states);
}

// Hyper-parameters ----------------------------------------------------------------------------------------------------

bool within(Range range, double x) {
  switch (range) {
    case Range::non_negative: return x >= 0;
    case Range::positive: return x > 0;
    case Range::below_one: return x >= 0 && x < 1;
    case Range::up_to_one: return x >= 0 && x <= 1;
    case Range::flag: return x == 0 || x == 1;
  }
  return false;
}

const char* describe(Range range) {
  switch (range) {
    case Range::non_negative: return "at least 0 and finite";
    case Range::positive: return "above 0 and finite";
    case Range::below_one: return "in [0, 1)";
    case Range::up_to_one: return "in [0, 1]";
    case Range::flag: return "True or False";
  }
  return "";
}

void check_hyper(Hyper hyper, double x, bool single_precision) {
  if (!std::isfinite(x) || !within(hyper.range, x))
    throw py::value_error(std::string(hyper.name) + " must be " + describe(hyper.range) + ", got " +
                          text(py::float_(x)));
  if (!single_precision) return;
  const auto rounded = static_cast<float>(x);
  if (!std::isfinite(rounded) || (hyper.range == Range::positive && rounded == 0))
    throw py::value_error(std::string(hyper.name) + " is " + text(py::float_(x)) + ", which float32 rounds to " +
                          text(py::float_(rounded)));
}

constexpr Hyper weight_decay_hyper{"weight_decay", Range::non_negative};

void check_hypers(const Spec& spec, const std::vector<double>& values, double weight_decay, bool single_precision) {
  const int count = hyper_count(spec);
  if (values.size() != static_cast<std::size_t>(count))
    throw py::value_error(std::string(spec.name) + " takes " + std::to_string(count) + " hyper-parameters, got " +
                          std::to_string(values.size()));
  for (int i = 0; i < count; ++i) check_hyper(spec.hyper[i], values[static_cast<std::size_t>(i)], single_precision);
  check_hyper(weight_decay_hyper, weight_decay, single_precision);
}

void check_hyper_by_name(const Spec& spec, const std::string& name, double x, bool single_precision) {
  if (name == weight_decay_hyper.name) return check_hyper(weight_decay_hyper, x, single_precision);
  for (const Hyper* hyper = spec.hyper; hyper != spec.hyper + hyper_count(spec); ++hyper)
    if (name == hyper->name) return check_hyper(*hyper, x, single_precision);
  throw py::key_error(std::string(spec.name) + " has no hyper-parameter " + name);
}

// Memory --------------------------------------------------------------------------------------------------------------

struct Memory {
  const char* begin;
  std::int64_t size;  // elements
  bool single_precision;

  std::int64_t item_size() const { return single_precision ? 4 : 8; }
  const char* end() const { return begin + size * item_size(); }
  bool operator==(const Memory& other) const {
    return begin == other.begin && size == other.size && single_precision == other.single_precision;
  }
};

std::string shape_text(const py::array& array) { return text(array.attr("shape")); }

// What every array must be to be read in place, whatever its role.
Memory check_memory(const py::handle& object, const std::string& label) {
  if (!py::isinstance<py::array>(object))
    throw py::type_error(label + " must be a numpy.ndarray, got " + text(py::type::of(object).attr("__name__")));
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (py::type::of(object).ptr() != reinterpret_cast<PyObject*>(py::detail::npy_api::get().PyArray_Type_) &&
      py::hasattr(object, "mask"))
    throw py::type_error(label + " must be a numpy.ndarray, got a masked array, whose mask would be ignored");
  const py::dtype dtype = array.dtype();
  const bool single_precision = dtype.num() == py::dtype::num_of<float>();
  if (!single_precision && dtype.num() != py::dtype::num_of<double>())
    throw py::type_error(label + " must have dtype float32 or float64, got " + text(dtype));
  if (dtype.byteorder() != '=')
    throw py::type_error(label + " must have the byte order of this machine, got dtype " + text(dtype));
  const int flags = array.flags();
  if (!(flags & py::array::c_style))
    throw py::value_error(label + " must be C-contiguous, got shape " + shape_text(array) + " with strides " +
                          text(array.attr("strides")));
  if (!(flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_))
    throw py::value_error(label + " must be aligned to its " + std::to_string(dtype.itemsize()) +
                          "-byte elements, got address " + text(array.attr("ctypes").attr("data")));
  return {static_cast<const char*>(array.data()), array.size(), single_precision};
}

Memory check_writeable_memory(const py::handle& object, const std::string& label) {
  const Memory memory = check_memory(object, label);
  if (!py::reinterpret_borrow<py::array>(object).writeable())
    throw py::value_error(label + " is read-only, so it cannot be updated in place");
  return memory;
}

void check_same_dtype(const Memory& memory, const std::string& label, const Memory& param,
                      const std::string& param_label) {
  const auto name = [](const Memory& m) { return std::string(m.single_precision ? "float32" : "float64"); };
  if (memory.single_precision != param.single_precision)
    throw py::type_error(label + " must have the dtype of " + param_label + ", " + name(param) + ", got " +
                         name(memory) + "; nothing is converted silently");
}

bool same_shape(const py::array& a, const py::array& b, py::ssize_t leading = 0) {
  return a.ndim() == b.ndim() + leading && std::equal(b.shape(), b.shape() + b.ndim(), a.shape() + leading);
}

void check_same_shape(const py::array& array, const std::string& label, const py::array& param,
                      const std::string& param_label) {
  if (!same_shape(array, param))
    throw py::value_error(label + " must have the shape of " + param_label + ", " + shape_text(param) + ", got " +
                          shape_text(array));
}

// The memory that steps write to, sorted, so that an array that overlaps it is found quickly.
class Claims {
 public:
  void add(const Memory& memory, std::string label) {
    if (memory.size > 0) claims_.push_back({memory, std::move(label)});
  }

  void sort_and_check() {
    std::sort(claims_.begin(), claims_.end(),
              [](const Claim& a, const Claim& b) { return a.memory.begin < b.memory.begin; });
    for (std::size_t i = 1; i < claims_.size(); ++i)
      if (claims_[i - 1].memory.end() > claims_[i].memory.begin) {
        const Claim &a = claims_[i - 1], &b = claims_[i];
        throw py::value_error(b.label + (a.memory == b.memory ? " is the same array as " : " shares memory with ") +
                              a.label);
      }
  }

  void check_free(const Memory& memory, const std::string& label) const {
    const auto after = std::lower_bound(claims_.begin(), claims_.end(), memory.end(),
                                        [](const Claim& a, const char* end) { return a.memory.begin < end; });
    if (memory.size > 0 && after != claims_.begin() && std::prev(after)->memory.end() > memory.begin)
      throw py::value_error(label + " shares memory with " + std::prev(after)->label + ", which the step writes to");
  }

 private:
  struct Claim {
    Memory memory;
    std::string label;
  };
  std::vector<Claim> claims_;
};

// Plan ----------------------------------------------------------------------------------------------------------------

using Arrays = std::vector<py::object>;

// Checks the arrays of a Plan before its states exist.
void check_params(const Arrays& params, const std::string& noun, const std::vector<std::string>& suffixes) {
  Claims claims;
  for (std::size_t i = 0; i < params.size(); ++i)
    claims.add(check_writeable_memory(params[i], noun + suffixes[i]), noun + suffixes[i]);
  claims.sort_and_check();
}

// A rule bound to parameters and states. It keeps them alive and counts the steps.
class Plan {
 public:
  // `nouns` names the parameters, the gradients and the rule's states in messages, `suffixes` the arrays of each.
  // A state may have an axis of rows before the parameter's axes: step(row=...) picks the row.
  Plan(std::string rule, Arrays params, std::vector<Arrays> states, std::vector<std::string> nouns,
       std::vector<std::string> suffixes)
      : rule_(std::move(rule)), nouns_(std::move(nouns)), suffixes_(std::move(suffixes)) {
    const Spec& spec = find_rule(rule_, active_level().table()).spec;
    const auto state_names = static_cast<std::size_t>(state_count(spec));
    if (nouns_.size() != 2 + state_names || states.size() != state_names || suffixes_.size() != params.size())
      throw py::value_error(rule_ + ": wrong number of nouns, states or suffixes");
    for (std::size_t i = 0; i < params.size(); ++i) {
      Slot slot{py::reinterpret_borrow<py::object>(params[i]), check_writeable_memory(params[i], label(0, i)), {}};
      claims_.add(slot.memory, label(0, i));
      single_precision_ = single_precision_ || slot.memory.single_precision;
      const auto param = py::reinterpret_borrow<py::array>(slot.param);
      for (std::size_t k = 0; k < state_names; ++k) {
        const Memory memory = check_writeable_memory(states[k].at(i), label(2 + k, i));
        const auto state = py::reinterpret_borrow<py::array>(states[k][i]);
        check_same_dtype(memory, label(2 + k, i), slot.memory, label(0, i));
        const bool has_rows = state.ndim() == param.ndim() + 1 && same_shape(state, param, 1);
        if (!has_rows) check_same_shape(state, label(2 + k, i), param, label(0, i));
        slot.states.push_back({state, has_rows ? state.shape(0) : 0});
        claims_.add(memory, label(2 + k, i));
      }
      slots_.push_back(std::move(slot));
    }
    claims_.sort_and_check();
  }

  void step(const std::vector<py::handle>& grads, const std::vector<double>& hyper, double weight_decay, bool maximize,
            std::int64_t row) {
    const Entry& entry = find_rule(rule_, active_level().table());
    check_hypers(entry.spec, hyper, weight_decay, single_precision_);
    if (grads.size() != slots_.size())
      throw py::value_error(nouns_[1] + " must hold " + std::to_string(slots_.size()) + " arrays, got " +
                            std::to_string(grads.size()));
    Step step{t_ + 1, weight_decay, maximize, {}};
    std::copy(hyper.begin(), hyper.end(), step.hyper);
    Constants float32, float64;
    std::vector<Job> jobs;
    jobs.reserve(slots_.size());
    std::vector<py::object> alive;  // gradients given as NumPy scalars
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      const Slot& slot = slots_[i];
      check_unmoved(slot, i);
      Job job{slot.memory.single_precision ? &entry.float32 : &entry.float64,
              slot.memory.single_precision ? &float32 : &float64,
              {const_cast<char*>(slot.memory.begin), check_gradient(grads[i], slot, i, alive), {}},
              slot.memory.size};
      for (std::size_t k = 0; k < slot.states.size(); ++k) job.buffers.states[k] = state_row(slot, k, row, i);
      jobs.push_back(job);
    }
    entry.float32.fold(step, float32);
    entry.float64.fold(step, float64);
    {
      // The slots and the caller's list keep the memory alive, and nothing below touches a Python object.
      const py::gil_scoped_release release;
      run(jobs.data(), static_cast<std::int64_t>(jobs.size()));
    }
    ++t_;
  }

  std::int64_t t() const { return t_; }

  void set_t(std::int64_t t) {
    if (t < 0) throw py::value_error("t must be at least 0, got " + std::to_string(t));
    t_ = t;
  }

 private:
  struct State {
    py::array array;
    std::int64_t rows;  // 0: the state has the parameter's own shape
  };

  struct Slot {
    py::object param;
    Memory memory;
    std::vector<State> states;
  };

  std::string label(std::size_t noun, std::size_t i) const { return nouns_[noun] + suffixes_[i]; }

  // The caller holds the parameter too, and NumPy can resize or freeze an array behind our back.
  void check_unmoved(const Slot& slot, std::size_t i) const {
    const auto array = py::reinterpret_borrow<py::array>(slot.param);
    if (!array.writeable()) check_writeable_memory(array, label(0, i));
    if (array.data() != slot.memory.begin || array.nbytes() != slot.memory.size * slot.memory.item_size())
      throw py::value_error(label(0, i) + " was resized after the optimizer was made");
  }

  const void* check_gradient(py::handle grad, const Slot& slot, std::size_t i, std::vector<py::object>& alive) const {
    const std::string name = label(1, i);
    // Arithmetic on 0-d arrays gives NumPy scalars, which are read by value.
    if (!py::isinstance<py::array>(grad) && py::hasattr(grad, "dtype") && py::hasattr(grad, "__array_interface__")) {
      alive.push_back(py::module_::import("numpy").attr("asarray")(grad));
      grad = alive.back();
    }
    const Memory memory = check_memory(grad, name);
    check_same_dtype(memory, name, slot.memory, label(0, i));
    check_same_shape(py::reinterpret_borrow<py::array>(grad), name, py::reinterpret_borrow<py::array>(slot.param),
                     label(0, i));
    claims_.check_free(memory, name);
    return memory.begin;
  }

  void* state_row(const Slot& slot, std::size_t k, std::int64_t row, std::size_t i) const {
    const State& state = slot.states[k];
    const std::int64_t offset = state.rows ? row * slot.memory.size * slot.memory.item_size() : 0;
    if (state.rows && (row < 0 || row >= state.rows))
      throw py::index_error("row must be at least 0 and below " + std::to_string(state.rows) + ", the rows of " +
                            label(2 + k, i) + ", got " + std::to_string(row));
    return static_cast<char*>(const_cast<void*>(state.array.data())) + offset;
  }

  std::string rule_;
  std::vector<std::string> nouns_, suffixes_;
  std::vector<Slot> slots_;
  Claims claims_;
  bool single_precision_ = false;
  std::int64_t t_ = 0;
};

// The catalogue -------------------------------------------------------------------------------------------------------

std::vector<Spec> rules() {
  const Table table = baseline::table();
  std::vector<Spec> specs;
  for (int i = 0; i < table.size; ++i) specs.push_back(table.entries[i].spec);
  return specs;
}

using Names = py::typing::Tuple<py::str, py::ellipsis>;

Names hyper_names(const Spec& spec) {
  py::tuple names(hyper_count(spec));
  for (std::size_t i = 0; i < names.size(); ++i) names[i] = spec.hyper[i].name;
  return names;
}

Names state_names(const Spec& spec) {
  py::tuple names(state_count(spec));
  for (std::size_t i = 0; i < names.size(); ++i) names[i] = spec.states[i];
  return names;
}

py::typing::Dict<py::str, bool> isa_levels() {
  py::typing::Dict<py::str, bool> supported;
  const Levels all = levels();
  for (int i = 0; i < all.size; ++i) supported[all.first[i].name] = all.first[i].supported();
  return supported;
}

#define GRADSTEP_TEXT_(x) #x
#define GRADSTEP_TEXT(x) GRADSTEP_TEXT_(x)
#define GRADSTEP_VERSION_OF(name, major, minor, patch) \
  name " " GRADSTEP_TEXT(major) "." GRADSTEP_TEXT(minor) "." GRADSTEP_TEXT(patch)

#if defined(__clang__)
constexpr const char* compiler = GRADSTEP_VERSION_OF("Clang", __clang_major__, __clang_minor__, __clang_patchlevel__);
#elif defined(__GNUC__)
constexpr const char* compiler = GRADSTEP_VERSION_OF("GCC", __GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__);
#elif defined(_MSC_VER)
constexpr const char* compiler = "MSVC " GRADSTEP_TEXT(_MSC_FULL_VER);
#else
constexpr const char* compiler = "unknown";
#endif

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The native core of gradstep. Use the gradstep package; this module is an implementation detail.";
  m.attr("__version__") = GRADSTEP_VERSION;
  m.attr("compiler") = compiler;
  m.attr("openmp") = openmp_version();
  m.attr("elements_per_thread") = elements_per_thread;

  py::class_<Spec>(m, "Rule", "What is known of an update rule: names, in the order of the C++ code.")
      .def_property_readonly("name", [](const Spec& spec) { return spec.name; })
      .def_property_readonly("hyperparameters", hyper_names)
      .def_property_readonly("states", state_names)
      .def_property_readonly(
          "decoupled", [](const Spec& spec) { return spec.decay == Decay::decoupled; },
          "Whether weight decay shrinks the parameter instead of joining the gradient.")
      .def("check_hyper", check_hyper_by_name, py::arg("name"), py::arg("value"), py::arg("single_precision"),
           "Raise unless the value lies in the range of this hyper-parameter, or of weight_decay.");
  m.def("rules", rules, "Every rule, in order of increasing complexity.");

  m.def("check_params", check_params, py::arg("params"), py::arg("noun"), py::arg("suffixes"),
        "Raise unless each array can be updated in place and none overlaps another.");

  py::class_<Plan>(m, "Plan", "A rule bound to the memory of parameters and states.")
      .def(py::init<std::string, Arrays, std::vector<Arrays>, std::vector<std::string>, std::vector<std::string>>(),
           py::arg("rule"), py::arg("params"), py::arg("states"), py::arg("nouns"), py::arg("suffixes"))
      .def("step", &Plan::step, py::arg("grads"), py::arg("hyper"), py::arg("weight_decay"), py::arg("maximize"),
           py::arg("row") = 0, "Update everything once, or raise and change nothing.")
      .def_property("t", &Plan::t, &Plan::set_t, "Steps taken so far.");

  m.def("isa_levels", isa_levels, "Each compiled level, and whether this processor supports it.");
  m.def("get_isa", [] { return active_level().name; }, "The level in use.");
  m.def(
      "set_isa", [](const std::string& name) { use_level(name.c_str(), "isa"); }, py::arg("name"),
      "Use another level from now on. For tests: the bits do not depend on it.");
  m.def("get_num_threads", get_num_threads);
  m.def("set_num_threads", set_num_threads, py::arg("threads"));

  m.def("exp", py::vectorize(gradstep::exp), py::arg("x"));
  m.def("log", py::vectorize(gradstep::log), py::arg("x"));
  m.def("cos_pi", py::vectorize(cos_pi), py::arg("x"));
  m.def("power", py::vectorize(static_cast<double (*)(double, double)>(power)), py::arg("base"), py::arg("exponent"));
}
