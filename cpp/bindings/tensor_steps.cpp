// The steps of gradstep.torch: one call for all tensors of an optimizer, whatever their number.
//
// Nothing is relied on that PyTorch's users can change between steps: every tensor is asked for its memory again, which
// costs some 40 ns, and the optimizer for its states. All of it is checked before the first write. What a step works on
// is held until its end, because other threads run meanwhile, and no longer: Python's collector does not see it.

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
#include "row_jobs.hpp"
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

constexpr const char* sparse_layout = "torch.sparse_coo";

bool is_sparse(const py::handle& object) {
  return py::hasattr(object, "layout") && text(object.attr("layout")) == sparse_layout;
}

// What a message shows of an object that should have been another tensor.
std::string shown(const py::handle& object) {
  if (!py::hasattr(object, "layout")) return text(py::repr(object));
  std::string all;
  for (const char* name : {"dtype", "device", "layout"})
    all += (all.empty() ? "" : ", ") + text(py::repr(object.attr(name)));
  all += ", shape " + text(py::tuple(py::list(object.attr("shape"))));
  const std::string layout = text(object.attr("layout"));
  if (layout == "torch.strided") all += ", strides " + text(object.attr("stride")());
  if (layout == sparse_layout) all += ", sparse_dim " + text(object.attr("sparse_dim")());
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

// Of one that has such numbers.
Memory memory_of(const dlpack::Tensor& tensor) {
  return {address(tensor), element_count(tensor), *state_storage_of(tensor)};
}

Shape shape_of(const dlpack::Tensor& tensor) { return {tensor.shape, tensor.shape + tensor.ndim}; }

// The hyper-parameters in the rule's order, weight decay and maximize.
using Scalars = std::tuple<std::vector<double>, double, bool>;

// Of the steps so far and the numbers that each step moves on: the scalars of the next one, and those numbers then.
using Advance = py::typing::Callable<std::tuple<Scalars, std::vector<double>>(std::int64_t, std::vector<double>)>;

// Of gradients and the states beside them: what the rule reads beside both, laid out as they are.
using Form = py::typing::Callable<std::vector<py::object>(py::typing::List<py::object>, py::typing::List<py::object>)>;

// A rule, as the parameters of a group have it.
struct TensorRule {
  TensorRule(const std::string& rule, std::vector<py::str> state_names, bool counts, std::vector<py::str> progress,
             bool dense, bool sparse)
      : place(rule_named(rule)),
        spec(active_level().table().entries[place]->spec),
        states(std::move(state_names)),
        progress(std::move(progress)),
        counts(counts),
        dense(dense),
        sparse(sparse),
        any_storage(dense && takes_any_storage(spec)) {
    if (static_cast<int>(states.size()) + spec.gradients != state_count(spec))
      throw py::value_error(rule + ": wrong number of states");
  }

  // Whether it matters in which order the axes lie.
  bool has_matrices() const { return spec.row_factor >= 0 || spec.gradients > 0; }

  int place;
  const Spec& spec;
  std::vector<py::str> states;    // the names of those that are kept from step to step
  std::vector<py::str> progress;  // and of the numbers that each step moves on
  bool counts;                    // whether a state "step" counts
  bool dense, sparse;             // which gradients it takes
  bool any_storage;               // whether memory may hold numbers in fewer bits than the arithmetic has
};

// What a step takes from one parameter group: its tensors, the rule, the scalars, or, where each step moves numbers on,
// what gives them; where the rule reads more than gradients and states, what forms that; whether numbers are rounded by
// chance, what the chances begin with, and the place of the first tensor among all of the optimizer.
using Group = std::tuple<py::typing::List<py::object>, const TensorRule*, std::variant<Scalars, Advance>,
                         std::optional<Form>, std::tuple<bool, std::uint64_t, std::int64_t>>;

class TensorSteps {
 public:
  TensorSteps(py::object relaid, py::object as_axes, py::object increment_version)
      : relaid_(std::move(relaid)), as_axes_(std::move(as_axes)), increment_version_(std::move(increment_version)) {}

  // One step of `optimizer` over the groups, whose hyper-parameters have been checked.
  void step(const py::object& optimizer, const std::vector<Group>& groups) {
    const Hold hold(*this);
    const FloatMode mode(Denormals::keep);
    optimizer_ = optimizer;
    collect(optimizer, groups);
    make_states(optimizer, groups);
    form_inputs(optimizer, groups);
    check_apart();
    const Table& table = active_level().table();
    fold(groups, table);
    const int threads = get_num_threads();
    touch_rows(threads);
    keep_states(optimizer, groups);
    py::list params(slots_.size());
    for (std::size_t i = 0; i < slots_.size(); ++i) params[i] = slots_[i].param;
    increment_version_(params);  // as PyTorch's own operations do, so that autograd knows of the change
    {
      constexpr std::int64_t worth_releasing = 4096;
      std::optional<py::gil_scoped_release> release;
      if (size_ >= worth_releasing) release.emplace();
      update(jobs_.data(), static_cast<std::int64_t>(jobs_.size()), threads, Denormals::keep);
      if (row_jobs_.count() > 0) update(row_jobs_.jobs(), row_jobs_.count(), threads, Denormals::keep);
    }
    for (const Slot& slot : slots_) {
      slot.count.write(slot.t);
      const std::vector<py::str>& names = rule_of(groups, slot).progress;
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
    py::object state_tensors[max_states], count_tensor;
    bool is_relaid = false;  // whether some of these are copies that `state` does not have yet
    py::object axes;         // which it has not either; null: no others
    std::size_t group = 0;
    Memory memory{}, grad_memory{};
    Memory states[max_states]{};
    std::int64_t t = 2;  // of this step, from 1; where nobody counts, any but the first
    Count count;
    std::vector<double> progress;  // before this step
    const Folded* folded = nullptr;
    Matrices matrices{0, 0};
    py::object formed;  // what its rule reads beside gradient and states; null: nothing
    Memory formed_memory{};
    py::object indices, rows;  // of a sparse gradient; null: it is dense
    RowIndices row_indices{};
    std::int64_t row_count = 0;  // of the parameter
    std::int64_t place = 0;      // of the parameter among all
    Stored stored{};
    bool is_stored = false;  // whether anything is held in other bits than the arithmetic's

    bool single_precision() const { return arithmetic_of(memory.storage) == Storage::float32; }
  };

  struct Hold {
    explicit Hold(TensorSteps& steps) : steps(steps) {
      if (steps.busy_ && steps.forks_at_hold_ == fork_count()) throw std::runtime_error(in_use);
      steps.busy_ = true;
      steps.forks_at_hold_ = fork_count();
    }
    ~Hold() {
      steps.slots_.clear();
      steps.state_dicts_.clear();
      steps.direct_ = {};
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
      const auto& [params, rule, scalars, form, rounding] = groups[g];
      for (std::size_t i = 0; i < params.size(); ++i) {
        const auto param =
            py::reinterpret_borrow<py::object>(PyList_GET_ITEM(params.ptr(), static_cast<Py_ssize_t>(i)));
        py::object grad = attribute(param, grad_name_);
        if (grad.is_none()) continue;
        Slot slot;
        slot.param = param;
        slot.grad = std::move(grad);
        slot.group = g;
        slot.place = std::get<2>(rounding) + static_cast<std::int64_t>(i);
        dlpack::Tensor its;
        look_at(optimizer, slot, its, *rule);
        size_ += slot.memory.size;
        if (rule->counts || !rule->states.empty() || !is_wide(slot.memory.storage)) {
          slot.state = state_of(param);
          if (slot.state)
            attach_states(optimizer, slot, its, *rule);
          else
            missing_.push_back(slots_.size());
        }
        slots_.push_back(std::move(slot));
      }
    }
  }

  // As look(). The tensors of a network lie all over the memory, and out of the cache when their turn comes, so each
  // look also fetches what a later one will want: what the step before found there.
  // Raises where there is no memory; `named` says what of.
  template <class Named>
  bool see(const py::handle& object, dlpack::Tensor& tensor, const Named& named) const {
    constexpr std::size_t ahead = 30;
    if (trail_.size() + ahead < trail_before_.size()) {
      const auto& [head, shape] = trail_before_[trail_.size() + ahead];
      GRADSTEP_PREFETCH(reinterpret_cast<const char*>(head));
      // A tensor of PyTorch holds its shape; these are the lines around it.
      for (std::uintptr_t line = 0; line < 256; line += 64)
        GRADSTEP_PREFETCH(reinterpret_cast<const char*>(shape - 128 + line));
    }
    const bool seen = look(object.ptr(), tensor);
    trail_.emplace_back(reinterpret_cast<std::uintptr_t>(object.ptr()),
                        reinterpret_cast<std::uintptr_t>(seen ? tensor.shape : nullptr));
    if (seen && lacks_memory(tensor)) refuse_without_memory(object, named());
    return seen;
  }

  // Checks a parameter and its gradient.
  void look_at(const py::object& optimizer, Slot& slot, dlpack::Tensor& its, const TensorRule& rule) const {
    const auto fits = [&](const dlpack::Tensor& tensor) {
      const auto storage = storage_of(tensor);
      return storage && (is_wide(*storage) || rule.any_storage);
    };
    const auto named = [&] { return name(optimizer, slot); };
    const auto grad_named = [&] { return "the gradient of " + named(); };
    if (!see(slot.param, its, named) || !fits(its) || !is_dense(its) || is_negated_element(its, slot.param))
      throw py::value_error(named() + " must be a dense " +
                            (rule.any_storage ? "float32, float64, bfloat16 or float16" : "float32 or float64") +
                            " tensor in the memory of the CPU, got " + shown(slot.param));
    slot.memory = memory_of(its);
    slot.stored = {};
    slot.stored.param = slot.memory.storage;
    slot.is_stored = !is_wide(slot.memory.storage);
    if (rule.has_matrices()) {
      check_order(optimizer, slot, its, "whose rows and columns are its rule's");
      slot.matrices = matrices_of(rule.spec, shape_of(its));
    }
    dlpack::Tensor grad;
    const auto like = [&] {
      if (!see(slot.grad, grad, grad_named) || !fits(grad) || !same_shape(grad, its)) return false;
      const Memory memory = memory_of(grad);
      return rule.any_storage ? gradient_fits(memory.storage, slot.memory.storage)
                              : memory.storage == slot.memory.storage;
    };
    bool matches = rule.dense && like();
    if (!matches && rule.sparse && is_wide(slot.memory.storage) && is_sparse(slot.grad))
      return look_at_rows(optimizer, slot, its, rule);
    if (!matches || !same_layout(grad, its) || is_negated_element(grad, slot.grad)) {
      const bool dense = rule.dense && py::hasattr(slot.grad, "is_sparse") &&
                         text(slot.grad.attr("layout")) == "torch.strided" &&
                         (rule.any_storage || slot.grad.attr("dtype").is(slot.param.attr("dtype"))) &&
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
    if (!matches) refuse_gradient(optimizer, slot, rule);
    slot.grad_memory = memory_of(grad);
    slot.is_stored |= slot.grad_memory.storage != arithmetic_of(slot.memory.storage);
  }

  // Checks a sparse gradient, which has some rows of its parameter, in any order and any of them more than once.
  void look_at_rows(const py::object& optimizer, Slot& slot, const dlpack::Tensor& its, const TensorRule& rule) const {
    for (const char* attribute : {"dtype", "device", "shape"})
      if (!slot.grad.attr(attribute).equal(slot.param.attr(attribute))) refuse_gradient(optimizer, slot, rule);
    if (!slot.grad.attr("sparse_dim")().equal(py::int_(1))) refuse_gradient(optimizer, slot, rule);
    check_order(optimizer, slot, its, "whose rows a sparse gradient has");
    dlpack::Tensor indices, rows;
    const auto see_part = [&](const char* part, dlpack::Tensor& tensor) {
      const auto named = [&] {
        return "the " + std::string(part + 1) + " of the gradient of " + name(optimizer, slot);
      };
      py::object found = slot.grad.attr(part)();
      see(found, tensor, named);  // before it is copied
      // Those of an expanded gradient are not contiguous. They are only read, so nothing is lost by a copy.
      found = found.attr("resolve_neg")().attr("contiguous")();
      return std::make_pair(found, see(found, tensor, named));
    };
    bool indexed, valued;
    std::tie(slot.indices, indexed) = see_part("_indices", indices);
    std::tie(slot.rows, valued) = see_part("_values", rows);
    indexed = indexed && holds(indices, 64, dlpack::signed_integer) && is_contiguous(indices);
    std::int64_t size = indexed ? element_count(indices) : 0;
    for (std::int32_t i = 1; i < its.ndim; ++i) size *= its.shape[i];
    if (!indexed || !valued || !holds(rows, its.dtype.bits) || !is_contiguous(rows) || element_count(rows) != size)
      refuse_gradient(optimizer, slot, rule);
    slot.row_indices = {reinterpret_cast<const void*>(address(indices)), /*wide=*/true, element_count(indices)};
    slot.row_count = its.shape[0];
    slot.grad_memory = memory_of(rows);
  }

  static void check_order(const py::object& optimizer, const Slot& slot, const dlpack::Tensor& its,
                          const char* reason) {
    if (!is_contiguous(its))
      throw py::value_error(name(optimizer, slot) + ", " + reason + ", must be contiguous, got " + shown(slot.param));
  }

  [[noreturn]] static void refuse_gradient(const py::object& optimizer, const Slot& slot, const TensorRule& rule) {
    const bool by_rows = rule.sparse && is_wide(slot.memory.storage);
    const char* const wanted = !rule.dense ? "a sparse tensor of its shape and dtype, with one sparse dimension,"
                               : by_rows   ? "a tensor of its shape and dtype, dense or with one sparse dimension,"
                               : rule.any_storage
                                   ? "a dense floating-point tensor of its shape, no wider than its arithmetic,"
                                   : "a dense tensor of its shape and dtype";
    const char* const advice = !is_sparse(slot.grad) ? (rule.dense ? "" : "; dense gradients are for Adam and the like")
                               : !rule.sparse        ? "; sparse gradients are for SparseAdam and the like"
                               : !by_rows            ? "; sparse gradients are for float32 and float64"
                                                     : "";
    throw py::value_error("the gradient of " + name(optimizer, slot) + " must be " + wanted +
                          " in the memory of the CPU, got " + shown(slot.grad) + advice);
  }

  void attach_states(const py::object& optimizer, Slot& slot, const dlpack::Tensor& its, const TensorRule& rule) const {
    dlpack::Tensor tensor;
    const auto axes = static_cast<std::size_t>(its.ndim);
    bool narrow = !is_wide(slot.memory.storage), blocked = false;
    for (std::size_t k = 0; k < rule.states.size(); ++k) {
      if (!has_state(rule.spec, static_cast<int>(k), axes)) continue;
      py::object& state = slot.state_tensors[k];
      state = item(optimizer, slot, rule.states[k]);
      const auto named = [&] { return described(optimizer, slot, rule.states[k]); };
      const bool held = see(state, tensor, named) && state_storage_of(tensor) && !is_negated_element(tensor, state);
      const bool any_storage = rule.any_storage && !slot.indices;  // rows are swept as the arithmetic has them
      bool fits = held && (any_storage ? state_fits(rule.spec.states[k], memory_of(tensor).storage, slot.memory.storage)
                                       : memory_of(tensor).storage == slot.memory.storage);
      if (held && any_storage && slot.single_precision() && is_blocked(memory_of(tensor).storage)) {
        blocked = true;
        const Shape shape = {blocks_of(slot.memory.size), held_block};
        if (!fits || shape_of(tensor) != shape || !is_contiguous(tensor))
          throw py::value_error(named() + ", in 8 bits, must be contiguous, of the shape " +
                                text(py::tuple(py::cast(shape))) + " and torch." +
                                name_of(in_8_bits(rule.spec.states[k])) + ", got " + shown(state));
      } else if (rule.spec.row_factor >= 0 && axes > 1) {
        const Shape shape = state_shape(rule.spec, static_cast<int>(k), shape_of(its));
        if (!fits || shape_of(tensor) != shape || !is_contiguous(tensor))
          throw py::value_error(named() + " must be contiguous, of the shape " + text(py::tuple(py::cast(shape))) +
                                " and its parameter's dtype, got " + shown(state));
      } else {
        fits = fits && same_shape(tensor, its);
        // Where the parameter's axes have been exchanged in memory, so are the state's.
        if (fits && !same_layout(tensor, its) && is_dense(tensor)) relay(slot, k, tensor);
        if (!fits || !same_layout(tensor, its))
          throw py::value_error(named() + " must be laid out as its parameter is, " + shown(slot.param) + ", got " +
                                shown(state));
      }
      slot.states[k] = memory_of(tensor);
      slot.stored.states[k] = slot.states[k].storage;
      slot.is_stored |= slot.states[k].storage != arithmetic_of(slot.memory.storage);
      narrow |= !is_wide(slot.states[k].storage);
    }
    if (blocked) order_blocks(optimizer, slot, its);
    slot.progress.clear();
    for (const py::str& key : rule.progress) {
      const py::object number = item(optimizer, slot, key);
      const double value = PyFloat_Check(number.ptr()) ? PyFloat_AS_DOUBLE(number.ptr()) : -1;
      if (!(value >= 0 && value < HUGE_VAL))
        throw py::value_error(described(optimizer, slot, key) + " must be a float, finite and at least 0, got " +
                              text(py::repr(number)));
      slot.progress.push_back(value);
    }
    if (!rule.counts && !narrow) return;  // chances differ from step to step
    const py::object& count = slot.count_tensor = item(optimizer, slot, step_name_);
    const bool known = see(count, tensor, [&] { return described(optimizer, slot, step_name_); }) &&
                       holds(tensor, tensor.dtype.bits == 32 ? 32 : 64) && element_count(tensor) == 1;
    if (known) slot.count = {reinterpret_cast<void*>(address(tensor)), tensor.dtype.bits == 32};
    constexpr double most = 0x1p53;
    const double taken = known ? slot.count.read() : -1;
    if (!(taken >= 0 && taken < most && taken == std::floor(taken)))
      throw py::value_error(
          "state 'step' of " + name(optimizer, slot) +
          " must be one float32 or float64 number in the memory of the CPU, whole and at least 0, got " +
          (known ? text(py::float_(taken)) : shown(count)));
    slot.t = static_cast<std::int64_t>(taken) + 1;
  }

  // Blocks do not show for which elements their numbers were, so that stands beside them: the axes of more than one,
  // with their sizes, as they lay in memory, from the outermost on. Where these have been exchanged, so are the
  // numbers.
  void order_blocks(const py::object& optimizer, Slot& slot, const dlpack::Tensor& its) const {
    std::vector<std::pair<std::int32_t, std::int64_t>> axes;
    for (std::int32_t i = 0; i < its.ndim; ++i)
      if (its.shape[i] > 1) axes.emplace_back(i, its.shape[i]);
    if (!is_contiguous(its))
      std::sort(axes.begin(), axes.end(),
                [&](const auto& a, const auto& b) { return its.strides[a.first] > its.strides[b.first]; });
    py::object known = item(optimizer, slot, axes_name_);
    const py::tuple lying(py::cast(axes));
    if (!py::isinstance<py::tuple>(known)) {  // that of a state dict, which a host has put in place itself
      known = as_axes_(known);
      slot.axes = lying;
      slot.is_relaid = true;
    }
    if (lying.equal(known)) return;
    bool same = py::len(known) == lying.size();
    for (const py::handle& axis : lying) same = same && known.contains(axis);
    if (!same)
      throw py::value_error(described(optimizer, slot, axes_name_) + " must be " + text(lying) +
                            ", its parameter's axes and their sizes in the order of memory, got " +
                            text(py::repr(item(optimizer, slot, axes_name_))));
    for (int k = 0; k < max_states; ++k) {
      if (!slot.states[k].begin || !is_blocked(slot.states[k].storage)) continue;
      dlpack::Tensor tensor;
      relay(slot, k, tensor, known);
      slot.states[k] = memory_of(tensor);
    }
    slot.axes = lying;
  }

  // Replaces a state by a copy that is laid out as the parameter is now; keep_states() tells the optimizer.
  void relay(Slot& slot, std::size_t k, dlpack::Tensor& tensor, const py::object& axes = py::none()) const {
    py::object& state = slot.state_tensors[k];
    state = relaid_(slot.param, state, axes);
    look(state.ptr(), tensor);
    slot.is_relaid = true;
  }

  static std::string described(const py::object& optimizer, const Slot& slot, const py::str& state) {
    return "state " + text(py::repr(state)) + " of " + name(optimizer, slot);
  }

  static py::object item(const py::object& optimizer, const Slot& slot, const py::str& key) {
    PyObject* const value = PyDict_GetItemWithError(slot.state.ptr(), key.ptr());
    if (!value && PyErr_Occurred()) throw py::error_already_set();
    if (!value)
      throw py::value_error("the state of " + name(optimizer, slot) + " has no " + text(py::repr(key)) + ", only " +
                            text(py::list(slot.state)));
    return py::reinterpret_borrow<py::object>(value);
  }

  static const TensorRule& rule_of(const std::vector<Group>& groups, const Slot& slot) {
    return *std::get<1>(groups[slot.group]);
  }

  // The states of those that have none: made when all else has been found to fit.
  void make_states(const py::object& optimizer, const std::vector<Group>& groups) {
    if (missing_.empty()) return;
    py::list indices, params;
    for (const std::size_t i : missing_) {
      indices.append(slots_[i].group);
      params.append(slots_[i].param);
    }
    const py::list made = optimizer.attr("_new_states")(indices, params);
    for (std::size_t n = 0; n < missing_.size(); ++n) {
      Slot& slot = slots_[missing_[n]];
      slot.state = made[n];
      look_again(optimizer, slot, groups);
      if (!slot.count.place) slot.t = 1;
    }
  }

  // Keeps them, when nothing can be wrong any more.
  void keep_states(const py::object& optimizer, const std::vector<Group>& groups) const {
    for (const Slot& slot : slots_) {
      if (!slot.is_relaid) continue;
      py::dict state = slot.state;
      const std::vector<py::str>& names = rule_of(groups, slot).states;
      for (std::size_t k = 0; k < names.size(); ++k)
        if (slot.state_tensors[k]) state[names[k]] = slot.state_tensors[k];
      if (slot.axes) state[axes_name_] = slot.axes;
    }
    if (missing_.empty()) return;
    const py::object kept = optimizer.attr("state");
    for (const std::size_t i : missing_) kept[slots_[i].param] = slots_[i].state;
  }

  // Checks what Python code may have changed.
  void look_again(const py::object& optimizer, Slot& slot, const std::vector<Group>& groups) const {
    const TensorRule& rule = rule_of(groups, slot);
    dlpack::Tensor its;
    look_at(optimizer, slot, its, rule);
    if (slot.state) attach_states(optimizer, slot, its, rule);
  }

  // What rules read beside gradients and states. The parameters have not changed yet, nor have the states.
  void form_inputs(const py::object& optimizer, const std::vector<Group>& groups) {
    bool any = false;
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const auto& [params, rule, scalars, form, rounding] = groups[g];
      if (!form) continue;
      std::vector<Slot*> slots;
      py::list grads, states;
      for (Slot& slot : slots_) {
        if (slot.group != g) continue;
        slots.push_back(&slot);
        grads.append(slot.grad);
        states.append(slot.state);
      }
      if (slots.empty()) continue;
      any = true;
      const py::list formed = (*form)(grads, states);
      for (std::size_t i = 0; i < slots.size(); ++i) slots[i]->formed = formed[i];
    }
    if (!any) return;
    for (Slot& slot : slots_) {
      look_again(optimizer, slot, groups);
      if (!slot.formed) continue;
      dlpack::Tensor tensor;
      const bool fits = look(slot.formed.ptr(), tensor) && storage_of(tensor) == slot.memory.storage &&
                        is_contiguous(tensor) && element_count(tensor) == slot.memory.size;
      if (!fits) throw std::runtime_error(name(optimizer, slot) + " was exchanged during the step");
      slot.formed_memory = memory_of(tensor);
    }
  }

  // Makes state_of() quick: the hash of a tensor is a Python function, so many lookups cost more than a look whether
  // the dictionary is still the same. That needs addresses alone: where all are the same, so is what is found by them.
  void find_states(const py::object& optimizer, std::size_t lookups) {
    const py::dict state = attribute(optimizer, state_name_);
    direct_lookups_ = lookups < 8;
    if (direct_lookups_) {
      direct_ = state;
      return;
    }
    state_dicts_.reserve(state.size());
    PyObject *key, *value;
    Py_ssize_t position = 0;
    std::size_t i = 0;
    bool same = state.size() == entries_.size();
    for (; PyDict_Next(state.ptr(), &position, &key, &value); ++i) {
      same = same && entries_[i] == std::make_pair(key, value);
      state_dicts_.push_back(py::reinterpret_borrow<py::object>(value));
    }
    if (same) return;
    entries_.clear();
    places_.clear();
    for (position = 0; PyDict_Next(state.ptr(), &position, &key, &value);) {
      places_[key] = value;
      entries_.emplace_back(key, value);
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
      if (slots_[i].indices)
        claims_.check_free(memory_of(slots_[i].row_indices), Role{this, i, "the indices of the gradient of "});
      if (slots_[i].grad_memory == grads_before_[i]) continue;
      claims_.check_free(slots_[i].grad_memory, Role{this, i, "the gradient of "});
      grads_before_[i] = slots_[i].grad_memory;
    }
  }

  // The constants of all tensors that share a group, a number of steps, a type and a past are folded once.
  void fold(const std::vector<Group>& groups, const Table& table) {
    const auto alike = [](const Slot& a, const Slot& b) {
      return a.group == b.group && a.t == b.t && a.single_precision() == b.single_precision() &&
             a.progress == b.progress;
    };
    std::vector<const Entry*> entries;
    for (const Group& group : groups) entries.push_back(table.entries[std::get<1>(group)->place]);
    folded_.clear();
    jobs_.clear();
    sparse_.clear();
    jobs_.reserve(slots_.size());
    const Slot* before = nullptr;
    for (Slot& slot : slots_) {
      const Kernel& kernel = slot.single_precision() ? entries[slot.group]->float32 : entries[slot.group]->float64;
      if (before && alike(*before, slot)) {
        slot.folded = before->folded;
      } else {
        const auto [place, is_new] = folded_.try_emplace({slot.group, slot.t, slot.single_precision(), slot.progress});
        if (is_new) fold_one(kernel, groups[slot.group], slot, place->second);
        slot.folded = &place->second;
      }
      before = &slot;
      Job job{&kernel,
              &slot.folded->constants,
              {slot.memory.data(), slot.grad_memory.data(), {}},
              slot.memory.size,
              storage_bytes[static_cast<int>(arithmetic_of(slot.memory.storage))]};
      if (slot.is_stored) {
        const auto& [stochastic, seed, first] = std::get<4>(groups[slot.group]);
        hold_as(job, slot.stored, slot.grad_memory.storage, table, {stochastic, seed}, slot.t, slot.place,
                /*zero_grad=*/false);
      }
      for (int k = 0; k < max_states; ++k) job.buffers.states[k] = slot.states[k].data();
      if (slot.formed) job.buffers.states[state_count(entries[slot.group]->spec) - 1] = slot.formed_memory.data();
      job.buffers.matrices = slot.matrices;
      if (slot.indices) {
        check_no_decay(slot, groups);
        sparse_.emplace_back(&slot, job);
      } else {
        jobs_.push_back(job);
      }
    }
  }

  void check_no_decay(const Slot& slot, const std::vector<Group>& groups) const {
    const auto* const scalars = std::get_if<Scalars>(&std::get<2>(groups[slot.group]));
    if (scalars && std::get<1>(*scalars) != 0)
      throw py::value_error("weight_decay must be 0 where gradients are sparse, as that of " + name(optimizer_, slot) +
                            " is, got " + number_text(std::get<1>(*scalars)) + ": it would move all rows");
  }

  // Finds out which rows the sparse gradients have, and sums those of the same row.
  void touch_rows(int threads) {
    row_jobs_.clear(/*merges=*/true);
    if (sparse_.empty()) return;
    std::optional<WrongIndex> wrong;
    const Slot* slot = nullptr;
    {
      const py::gil_scoped_release release;
      for (auto one = sparse_.cbegin(); one != sparse_.cend() && !wrong; ++one) {
        slot = one->first;
        wrong = row_jobs_.add(one->second, slot->row_count, slot->row_indices);
      }
      if (!wrong) row_jobs_.sum(threads, Denormals::keep);
    }
    if (wrong)
      throw py::value_error("the indices of the gradient of " + name(optimizer_, *slot) +
                            " must be at least 0 and below " + std::to_string(slot->row_count) + ", got " +
                            std::to_string(wrong->index) + " at position " + std::to_string(wrong->position));
  }

  static void fold_one(const Kernel& kernel, const Group& group, const Slot& slot, Folded& folded) {
    const auto& [params, rule, scalars, form, rounding] = group;
    std::tuple<Scalars, std::vector<double>> known;
    if (const auto* advance = std::get_if<Advance>(&scalars))
      known = py::cast<decltype(known)>((*advance)(slot.t - 1, slot.progress));
    else
      std::get<0>(known) = std::get<Scalars>(scalars);
    const auto& [hyper, weight_decay, maximize] = std::get<0>(known);
    const std::vector<double>& after = std::get<1>(known);
    const std::string rule_name = rule->spec.name;
    if (after.size() != rule->progress.size())
      throw py::value_error(rule_name + ": other progress after the step than before");
    folded.progress.assign(after.begin(), after.end());
    if (hyper.size() > max_hyper) throw py::value_error(rule_name + ": too many hyper-parameters");
    Step step{slot.t, weight_decay, maximize, 1, 1, HUGE_VAL, false, false, false, {}};
    std::copy(hyper.begin(), hyper.end(), step.hyper);
    kernel.fold(step, folded.constants);
  }

  // What a message calls a parameter.
  static std::string name(const py::handle& optimizer, const Slot& slot) {
    return text(optimizer.attr("_name")(slot.param, slot.place));
  }

  // What a message calls an array. It is put together only when there is a message.
  struct Role {
    const TensorSteps* steps;
    std::size_t slot;
    const char* role;

    operator std::string() const { return role + name(steps->optimizer_, steps->slots_[slot]); }
  };

  py::object relaid_, as_axes_, increment_version_;
  py::str grad_name_ = interned("grad"), state_name_ = interned("state"), step_name_ = interned("step"),
          axes_name_ = interned("axes");
  std::vector<Slot> slots_;
  std::vector<std::size_t> missing_;  // the slots that have no states yet
  std::int64_t size_ = 0;             // elements of all slots
  // By group, number of steps, whether of float32, progress; the jobs point into it.
  std::map<std::tuple<std::size_t, std::int64_t, bool, std::vector<double>>, Folded> folded_;
  std::vector<Job> jobs_;
  std::vector<std::pair<const Slot*, Job>> sparse_;  // of all rows of those whose gradients have some
  RowJobs row_jobs_;
  std::vector<std::pair<PyObject*, PyObject*>> entries_;  // of the optimizer's states, as they were seen last
  std::unordered_map<PyObject*, PyObject*> places_;       // the same, by parameter
  std::vector<py::object> state_dicts_;                   // those found there, for the time of a step
  py::object direct_;                                     // the dictionary, where lookups are few
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
  m.def(
      "lacks_memory",
      [](const py::object& tensor) {
        dlpack::Tensor seen;
        return look(tensor.ptr(), seen) && lacks_memory(seen);
      },
      py::arg("tensor"), "Whether a tensor with elements has no memory of its own.");
  py::class_<TensorRule>(m, "TensorRule", "A rule, as the parameters of a group of gradstep.torch have it.")
      .def(py::init<std::string, std::vector<py::str>, bool, std::vector<py::str>, bool, bool>(), py::arg("rule"),
           py::arg("states"), py::arg("counts"), py::arg("progress"), py::arg("dense"), py::arg("sparse"),
           "The names of the states that are kept, whether a state \"step\" counts, the names of the\n"
           "numbers that each step moves on, and which gradients are taken.");
  py::class_<TensorSteps>(m, "TensorSteps", "What carries out the steps of an optimizer of gradstep.torch.")
      .def(py::init<py::object, py::object, py::object>(), py::arg("relaid"), py::arg("as_axes"),
           py::arg("increment_version"))
      .def("step", &TensorSteps::step, py::arg("optimizer"), py::arg("groups"),
           "Update every tensor that has a gradient, or raise and change nothing. A group is (params,\n"
           "rule, scalars, form, rounding). The scalars are (hyper-parameters, weight_decay, maximize),\n"
           "or, where there is progress, a function of the steps so far and the progress that gives them\n"
           "and the progress then. Where a rule reads more than gradients and states, `form` is a\n"
           "function of both that forms it, for each parameter; otherwise None. The rounding is\n"
           "(stochastic, seed, the place of the first of these parameters among all of the optimizer).");
}

}  // namespace gradstep
