// The steps of gradstep.torch: one call for all tensors of an optimizer, whatever their number.
//
// Nothing is relied on that PyTorch's users can change between steps: every tensor is asked for its memory again, which
// costs some 40 ns, and the optimizer for its states. All of it is checked before the first write.

#include "tensor_steps.hpp"

#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "claims.hpp"
#include "compiler.hpp"
#include "levels.hpp"
#include "shared.hpp"
#include "step.hpp"
#include "threads.hpp"
#include "views.hpp"

namespace py = pybind11;

namespace gradstep {
namespace {

py::object attribute(const py::handle& object, const py::str& name) {
  auto value = py::reinterpret_steal<py::object>(PyObject_GetAttr(object.ptr(), name.ptr()));
  if (!value) throw py::error_already_set();
  return value;
}

py::str interned(const char* name) { return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(name)); }

// What a message shows of an object that should have been another tensor.
std::string shown(const py::handle& object) {
  if (!py::hasattr(object, "layout")) return text(py::repr(object));
  std::string all;
  for (const char* name : {"dtype", "device", "layout"})
    all += (all.empty() ? "" : ", ") + text(py::repr(object.attr(name)));
  all += ", shape " + text(py::tuple(py::list(object.attr("shape"))));
  if (text(object.attr("layout")) == "torch.strided") all += ", strides " + text(object.attr("stride")());
  return all;
}

// Whether two tensors of one shape have their elements in the same order in memory.
bool same_layout(const dlpack::Tensor& a, const dlpack::Tensor& b) {
  for (std::int32_t i = 0; i < a.ndim; ++i)
    if (a.shape[i] > 1 && a.strides[i] != b.strides[i]) return false;
  return true;
}

bool same_shape(const dlpack::Tensor& a, const dlpack::Tensor& b) {
  return a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape);
}

// Whether the elements fill a range of memory, each once, in the order of C or with its axes exchanged.
bool is_dense(const dlpack::Tensor& tensor) {
  if (is_contiguous(tensor)) return true;
  std::vector<std::pair<std::int64_t, std::int64_t>> axes;
  for (std::int32_t i = 0; i < tensor.ndim; ++i)
    if (tensor.shape[i] > 1) axes.emplace_back(tensor.strides[i], tensor.shape[i]);
  std::sort(axes.begin(), axes.end());
  std::int64_t step = 1;
  for (const auto& [stride, size] : axes) {
    if (stride != step) return false;
    step *= size;
  }
  return true;
}

bool is_negated_element(const dlpack::Tensor& tensor, const py::handle& object) {
  return element_count(tensor) == 1 && is_negated(object);
}

Memory memory_of(const dlpack::Tensor& tensor) {
  return {address(tensor), element_count(tensor), tensor.dtype.bits == 32 ? Storage::float32 : Storage::float64};
}

// The hyper-parameters in the rule's order, weight decay and maximize.
using Scalars = std::tuple<std::vector<double>, double, bool>;

// Of the steps so far and the numbers that each step moves on: the scalars of the next one, and those numbers then.
using Advance = py::typing::Callable<std::tuple<Scalars, std::vector<double>>(std::int64_t, std::vector<double>)>;

// What a step takes from one parameter group: its tensors, the rule, the names of the rule's states, whether a state
// "step" counts, the names of the numbers that each step moves on, and the scalars, where there are no such numbers, or
// what gives them.
using Group = std::tuple<py::typing::List<py::object>, std::string, std::vector<py::str>, bool, std::vector<py::str>,
                         std::variant<Scalars, Advance>>;

class TensorSteps {
 public:
  TensorSteps(py::object relaid, py::object increment_version)
      : relaid_(std::move(relaid)), increment_version_(std::move(increment_version)) {}

  // One step of `optimizer` over the groups, whose hyper-parameters have been checked.
  void step(const py::object& optimizer, const std::vector<Group>& groups) {
    const Hold hold(*this);
    const FloatMode mode(Denormals::keep);
    optimizer_ = optimizer;
    collect(optimizer, groups);
    make_states(optimizer, groups);
    check_apart();
    const Table& table = active_level().table();
    fold(groups, table);
    const int threads = get_num_threads();
    py::list params(slots_.size());
    for (std::size_t i = 0; i < slots_.size(); ++i) params[i] = slots_[i].param;
    increment_version_(params);  // as PyTorch's own operations do, so that autograd knows of the change
    {
      constexpr std::int64_t worth_releasing = 4096;
      std::optional<py::gil_scoped_release> release;
      if (size_ >= worth_releasing) release.emplace();
      update(jobs_.data(), static_cast<std::int64_t>(jobs_.size()), threads, Denormals::keep);
    }
    for (const Slot& slot : slots_) {
      slot.count.write(slot.t);
      const std::vector<py::str>& names = std::get<4>(groups[slot.group]);
      for (std::size_t k = 0; k < names.size(); ++k)
        if (PyDict_SetItem(slot.state.ptr(), names[k].ptr(), slot.folded->progress[k].ptr()))
          throw py::error_already_set();
    }
  }

 private:
  // Where the number of steps stands that a tensor has taken; nowhere, where its rule does not count.
  struct Count {
    void* place = nullptr;
    bool single_precision = false;

    double read() const { return single_precision ? *static_cast<float*>(place) : *static_cast<double*>(place); }
    void write(std::int64_t t) const {
      if (!place) return;
      if (single_precision)
        *static_cast<float*>(place) = static_cast<float>(t);
      else
        *static_cast<double*>(place) = static_cast<double>(t);
    }
  };

  // The constants of a step, and the numbers that it has moved on.
  struct Folded {
    Constants constants;
    std::vector<py::float_> progress;
  };

  // A parameter that has a gradient, for the time of a step.
  struct Slot {
    py::object param, grad, state;  // state: null where the rule has none, or until it is made
    std::size_t group;
    Memory memory, grad_memory;
    Memory states[max_states];
    std::int64_t t;  // of this step, from 1
    Count count;
    std::vector<double> progress;  // before this step
    const Folded* folded = nullptr;
  };

  struct Hold {
    explicit Hold(TensorSteps& steps) : steps(steps) {
      if (steps.busy_ && steps.forks_at_hold_ == fork_count()) throw std::runtime_error(in_use);
      steps.busy_ = true;
      steps.forks_at_hold_ = fork_count();
    }
    ~Hold() {
      steps.slots_.clear();
      steps.busy_ = false;
    }
    TensorSteps& steps;
  };

  // Every parameter that has a gradient, looked at; its states too, where it has them.
  void collect(const py::object& optimizer, const std::vector<Group>& groups) {
    std::swap(trail_, trail_before_);
    trail_.clear();
    slots_.clear();
    missing_.clear();
    size_ = 0;
    std::size_t total = 0;
    for (const Group& group : groups) total += std::get<0>(group).size();
    find_states(optimizer, total);
    slots_.reserve(total);
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const auto& [params, rule, state_names, counts, progress, scalars] = groups[g];
      const bool keeps = counts || !state_names.empty();
      for (std::size_t i = 0; i < params.size(); ++i) {
        const auto param =
            py::reinterpret_borrow<py::object>(PyList_GET_ITEM(params.ptr(), static_cast<Py_ssize_t>(i)));
        py::object grad = attribute(param, grad_name_);
        if (grad.is_none()) continue;
        Slot slot{param, std::move(grad), {}, g, {}, {}, {}, 2, {}, {}};
        dlpack::Tensor its;
        look_at(optimizer, slot, its);
        size_ += slot.memory.size;
        if (keeps) {
          slot.state = state_of(param);
          if (slot.state)
            attach_states(optimizer, slot, its, groups[g]);
          else
            missing_.push_back(slots_.size());
        }
        slots_.push_back(std::move(slot));
      }
    }
  }

  // As look(). The tensors of a network lie all over the memory, and out of the cache when their turn comes, so each
  // look also fetches what a later one will want: what the step before found there.
  bool see(PyObject* object, dlpack::Tensor& tensor) const {
    constexpr std::size_t ahead = 30;
    if (trail_.size() + ahead < trail_before_.size()) {
      const auto& [head, shape] = trail_before_[trail_.size() + ahead];
      GRADSTEP_PREFETCH(reinterpret_cast<const char*>(head));
      // A tensor of PyTorch holds its shape; these are the lines around it.
      for (std::uintptr_t line = 0; line < 256; line += 64)
        GRADSTEP_PREFETCH(reinterpret_cast<const char*>(shape - 128 + line));
    }
    const bool seen = look(object, tensor);
    trail_.emplace_back(reinterpret_cast<std::uintptr_t>(object),
                        reinterpret_cast<std::uintptr_t>(seen ? tensor.shape : nullptr));
    return seen;
  }

  // Checks a parameter and its gradient.
  void look_at(const py::object& optimizer, Slot& slot, dlpack::Tensor& its) const {
    const auto fits = [](const dlpack::Tensor& tensor) { return holds(tensor, tensor.dtype.bits == 32 ? 32 : 64); };
    if (!see(slot.param.ptr(), its) || !fits(its) || !is_dense(its) || is_negated_element(its, slot.param))
      throw py::value_error(name(optimizer, slot.param) +
                            " must be a dense float32 or float64 tensor in the memory of the CPU, got " +
                            shown(slot.param));
    slot.memory = memory_of(its);
    dlpack::Tensor grad;
    const auto like = [&] {
      return see(slot.grad.ptr(), grad) && fits(grad) && grad.dtype.bits == its.dtype.bits && same_shape(grad, its);
    };
    bool matches = like();
    if (!matches || !same_layout(grad, its) || is_negated_element(grad, slot.grad)) {
      const bool dense = py::hasattr(slot.grad, "is_sparse") && text(slot.grad.attr("layout")) == "torch.strided" &&
                         slot.grad.attr("dtype").is(slot.param.attr("dtype")) &&
                         slot.grad.attr("device").equal(slot.param.attr("device")) &&
                         slot.grad.attr("shape").equal(slot.param.attr("shape"));
      // Nothing is lost: the gradient is only read, so one laid out otherwise can be copied.
      if (dense) {
        slot.grad = relaid_(slot.param, slot.grad);
        matches = like() && same_layout(grad, its);
      } else {
        matches = false;
      }
    }
    if (!matches)
      throw py::value_error("the gradient of " + name(optimizer, slot.param) +
                            " must be a dense tensor of its shape and dtype in the memory of the CPU, got " +
                            shown(slot.grad));
    slot.grad_memory = memory_of(grad);
  }

  void attach_states(const py::object& optimizer, Slot& slot, const dlpack::Tensor& its, const Group& group) const {
    const auto& [params, rule, names, counts, progress, scalars] = group;
    dlpack::Tensor tensor;
    for (std::size_t k = 0; k < names.size(); ++k) {
      const py::handle state = item(optimizer, slot, names[k]);
      if (!see(state.ptr(), tensor) || !holds(tensor, its.dtype.bits) || !same_shape(tensor, its) ||
          !same_layout(tensor, its) || is_negated_element(tensor, state))
        throw py::value_error("state " + text(py::repr(names[k])) + " of " + name(optimizer, slot.param) +
                              " must be laid out as its parameter is, " + shown(slot.param) + ", got " + shown(state));
      slot.states[k] = memory_of(tensor);
    }
    slot.progress.clear();
    for (const py::str& key : progress) {
      const py::handle number = item(optimizer, slot, key);
      const double value = PyFloat_Check(number.ptr()) ? PyFloat_AS_DOUBLE(number.ptr()) : -1;
      if (!(value >= 0 && value < HUGE_VAL))
        throw py::value_error("state " + text(py::repr(key)) + " of " + name(optimizer, slot.param) +
                              " must be a float, finite and at least 0, got " + text(py::repr(number)));
      slot.progress.push_back(value);
    }
    if (!counts) return;
    const py::handle count = item(optimizer, slot, step_name_);
    const bool known =
        see(count.ptr(), tensor) && holds(tensor, tensor.dtype.bits == 32 ? 32 : 64) && element_count(tensor) == 1;
    if (known) slot.count = {reinterpret_cast<void*>(address(tensor)), tensor.dtype.bits == 32};
    constexpr double most = 0x1p53;
    const double taken = known ? slot.count.read() : -1;
    if (!(taken >= 0 && taken < most && taken == std::floor(taken)))
      throw py::value_error(
          "state 'step' of " + name(optimizer, slot.param) +
          " must be one float32 or float64 number in the memory of the CPU, whole and at least 0, got " +
          (known ? text(py::float_(taken)) : shown(count)));
    slot.t = static_cast<std::int64_t>(taken) + 1;
  }

  static py::handle item(const py::object& optimizer, const Slot& slot, const py::str& key) {
    PyObject* const value = PyDict_GetItemWithError(slot.state.ptr(), key.ptr());
    if (!value && PyErr_Occurred()) throw py::error_already_set();
    if (!value)
      throw py::value_error("the state of " + name(optimizer, slot.param) + " has no " + text(py::repr(key)) +
                            ", only " + text(py::list(slot.state)));
    return value;
  }

  // The states of those that have none: made when all else has been found to fit, and kept when all are made.
  void make_states(const py::object& optimizer, const std::vector<Group>& groups) {
    if (missing_.empty()) return;
    py::list indices, params;
    for (const std::size_t i : missing_) {
      indices.append(slots_[i].group);
      params.append(slots_[i].param);
    }
    const py::list made = optimizer.attr("_new_states")(indices, params);
    const py::object kept = optimizer.attr("state");
    for (std::size_t n = 0; n < missing_.size(); ++n) {
      Slot& slot = slots_[missing_[n]];
      slot.state = made[n];
      dlpack::Tensor its;
      look_at(optimizer, slot, its);
      attach_states(optimizer, slot, its, groups[slot.group]);
      if (!slot.count.place) slot.t = 1;
    }
    for (const std::size_t i : missing_) kept[slots_[i].param] = slots_[i].state;
  }

  // Makes state_of() quick: the hash of a tensor is a Python function, so many lookups cost more than a look whether
  // the dictionary is still the same.
  void find_states(const py::object& optimizer, std::size_t lookups) {
    const py::dict state = attribute(optimizer, state_name_);
    direct_ = lookups < 8 ? state : py::dict();
    direct_lookups_ = lookups < 8;
    if (direct_lookups_) return;
    PyObject *key, *value;
    Py_ssize_t position = 0;
    std::size_t i = 0;
    bool same = state.size() == entries_.size();
    for (; same && PyDict_Next(state.ptr(), &position, &key, &value); ++i)
      same = entries_[i].first.ptr() == key && entries_[i].second.ptr() == value;
    if (same) return;
    entries_.clear();
    places_.clear();
    for (position = 0; PyDict_Next(state.ptr(), &position, &key, &value);) {
      places_[key] = value;
      entries_.emplace_back(py::reinterpret_borrow<py::object>(key), py::reinterpret_borrow<py::object>(value));
    }
  }

  // The states of a parameter, or null where there are none yet.
  py::object state_of(const py::object& param) const {
    PyObject* found = nullptr;
    if (direct_lookups_) {
      found = PyDict_GetItemWithError(direct_.ptr(), param.ptr());
      if (!found && PyErr_Occurred()) throw py::error_already_set();
    } else if (const auto place = places_.find(param.ptr()); place != places_.end()) {
      found = place->second;
    }
    if (!found || !PyDict_Check(found) || PyDict_Size(found) == 0) return {};
    return py::reinterpret_borrow<py::object>(found);
  }

  // No two arrays may share memory if one of them is written to. What was found apart is so as long as it lies there.
  void check_apart() {
    written_.clear();
    for (const Slot& slot : slots_) {
      written_.push_back(slot.memory);
      for (const Memory& state : slot.states)
        if (state.begin) written_.push_back(state);
    }
    const bool same = written_ == written_before_;
    if (!same) {
      written_before_.clear();
      grads_before_.clear();
      claims_ = {};
      for (std::size_t i = 0; i < slots_.size(); ++i) {
        claims_.add(slots_[i].memory, {this, i, ""});
        for (const Memory& state : slots_[i].states) claims_.add(state, {this, i, "a state of "});
      }
      claims_.sort_and_check();
      written_before_ = written_;
      grads_before_.resize(slots_.size());
    }
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      if (slots_[i].grad_memory == grads_before_[i]) continue;
      claims_.check_free(slots_[i].grad_memory, Role{this, i, "the gradient of "});
      grads_before_[i] = slots_[i].grad_memory;
    }
  }

  // The constants of all tensors that share a group, a number of steps, a type and a past are folded once.
  void fold(const std::vector<Group>& groups, const Table& table) {
    const auto alike = [](const Slot& a, const Slot& b) {
      return a.group == b.group && a.t == b.t && a.memory.storage == b.memory.storage && a.progress == b.progress;
    };
    std::vector<const Entry*> entries;
    for (const Group& group : groups) entries.push_back(&table.entries[rule_named(std::get<1>(group))]);
    folded_.clear();
    jobs_.clear();
    jobs_.reserve(slots_.size());
    const Slot* before = nullptr;
    for (Slot& slot : slots_) {
      const Kernel& kernel =
          slot.memory.storage == Storage::float32 ? entries[slot.group]->float32 : entries[slot.group]->float64;
      if (before && alike(*before, slot)) {
        slot.folded = before->folded;
      } else {
        const auto [place, is_new] =
            folded_.try_emplace({slot.group, slot.t, slot.memory.storage == Storage::float32, slot.progress});
        if (is_new) fold_one(kernel, groups[slot.group], slot, place->second);
        slot.folded = &place->second;
      }
      before = &slot;
      Job job{&kernel,
              &slot.folded->constants,
              {slot.memory.data(), slot.grad_memory.data(), {}},
              slot.memory.size,
              slot.memory.item_size()};
      for (int k = 0; k < max_states; ++k) job.buffers.states[k] = slot.states[k].data();
      jobs_.push_back(job);
    }
  }

  static void fold_one(const Kernel& kernel, const Group& group, const Slot& slot, Folded& folded) {
    const auto& [params, rule, state_names, counts, progress, scalars] = group;
    std::tuple<Scalars, std::vector<double>> known;
    if (const auto* advance = std::get_if<Advance>(&scalars))
      known = py::cast<decltype(known)>((*advance)(slot.t - 1, slot.progress));
    else
      std::get<0>(known) = std::get<Scalars>(scalars);
    const auto& [hyper, weight_decay, maximize] = std::get<0>(known);
    const std::vector<double>& after = std::get<1>(known);
    if (after.size() != progress.size()) throw py::value_error(rule + ": other progress after the step than before");
    folded.progress.assign(after.begin(), after.end());
    if (hyper.size() > max_hyper) throw py::value_error(rule + ": too many hyper-parameters");
    Step step{slot.t, weight_decay, maximize, 1, 1, HUGE_VAL, false, false, {}};
    std::copy(hyper.begin(), hyper.end(), step.hyper);
    kernel.fold(step, folded.constants);
  }

  // What a message calls a parameter.
  static std::string name(const py::handle& optimizer, const py::object& param) {
    return text(optimizer.attr("_name")(param));
  }

  // What a message calls an array. It is put together only when there is a message.
  struct Role {
    const TensorSteps* steps;
    std::size_t slot;
    const char* role;

    operator std::string() const { return role + name(steps->optimizer_, steps->slots_[slot].param); }
  };

  py::object relaid_, increment_version_;
  py::str grad_name_ = interned("grad"), state_name_ = interned("state"), step_name_ = interned("step");
  std::vector<Slot> slots_;
  std::vector<std::size_t> missing_;  // the slots that have no states yet
  std::int64_t size_ = 0;             // elements of all slots
  // By group, number of steps, whether of float32, progress; the jobs point into it.
  std::map<std::tuple<std::size_t, std::int64_t, bool, std::vector<double>>, Folded> folded_;
  std::vector<Job> jobs_;
  std::vector<std::pair<py::object, py::object>> entries_;  // of the optimizer's states, as they were seen last
  std::unordered_map<PyObject*, PyObject*> places_;         // the same, by parameter
  py::dict direct_;
  bool direct_lookups_ = false;
  std::vector<Memory> written_, written_before_, grads_before_;
  Claims<Role> claims_;
  py::handle optimizer_;  // whose step this is
  bool busy_ = false;     // guarded by the GIL
  int forks_at_hold_ = 0;
  // Where the tensors of this step and the last one lie, in the order of the looks: nothing but a hint.
  mutable std::vector<std::pair<std::uintptr_t, std::uintptr_t>> trail_, trail_before_;
};

}  // namespace

void define_tensor_steps(py::module_& m) {
  py::class_<TensorSteps>(m, "TensorSteps", "What carries out the steps of an optimizer of gradstep.torch.")
      .def(py::init<py::object, py::object>(), py::arg("relaid"), py::arg("increment_version"))
      .def("step", &TensorSteps::step, py::arg("optimizer"), py::arg("groups"),
           "Update every tensor that has a gradient, or raise and change nothing. A group is (params,\n"
           "rule, names of its states, whether steps are counted, names of its progress, scalars).\n"
           "The scalars are (hyper-parameters, weight_decay, maximize), or, where there is progress,\n"
           "a function of the steps so far and the progress that gives them and the progress then.");
}

}  // namespace gradstep
