// The native module: checks memory, lets go of Python, calls the kernels.
//
// A Plan checks everything that can be wrong before the first write, so that a call that raises has changed nothing.
// Python has checked the structure of the arguments (optimizers.py) and gives every array a label for the messages.

#include <gradstep/gradstep.h>
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "checks.hpp"
#include "claims.hpp"
#include "conversions.hpp"
#include "finite_sum.hpp"
#include "levels.hpp"
#include "math.hpp"
#include "row_jobs.hpp"
#include "shared.hpp"
#include "step.hpp"
#include "tensor_steps.hpp"
#include "threads.hpp"
#include "views.hpp"

namespace py = pybind11;
using namespace gradstep;

namespace {

// What a message calls an array: `grads['w']`. It is put together only when there is a message.
struct Label {
  const std::string& noun;
  const std::string& suffix;

  operator std::string() const { return noun + suffix; }
};

std::string operator+(const Label& label, const std::string& rest) { return std::string(label) + rest; }
std::string operator+(const std::string& start, const Label& label) { return start + std::string(label); }

void check_hyper_by_name(const Spec& spec, const std::string& name, double x, bool single_precision) {
  const FloatMode mode(Denormals::keep);
  const Hyper* hyper = find_hyper(spec, name);
  if (!hyper) throw py::key_error(std::string(spec.name) + " has no hyper-parameter " + name);
  check_hyper(*hyper, x, single_precision);
}

// Memory --------------------------------------------------------------------------------------------------------------

std::string shape_text(const py::array& array) { return text(array.attr("shape")); }

// NumPy keeps one dtype object per number type; arrays share it, unless made with a dtype of their own.
template <class T>
const PyObject* shared_dtype() {
  static const PyObject* dtype = py::dtype::of<T>().release().ptr();
  return dtype;
}

// The two of 16 bits. ml_dtypes tells NumPy of bfloat16, at some time or never.
constexpr int half_number = 23;  // which NumPy has for float16
const PyObject* shared_half = nullptr;
const PyObject* shared_bfloat16 = nullptr;

// How memory holds the elements of a dtype; nothing where steps do not take it.
std::optional<Storage> storage_of(const py::dtype& dtype) {
  if (dtype.num() == py::dtype::num_of<float>()) return Storage::float32;
  if (dtype.num() == py::dtype::num_of<double>()) return Storage::float64;
  // Kept alive, so that no other dtype can come to lie at its address.
  const auto remember = [&](const PyObject*& place) {
    if (!place && dtype.attr("isnative").cast<bool>()) place = dtype.inc_ref().ptr();
  };
  if (dtype.num() == half_number) return remember(shared_half), Storage::float16;
  if (dtype.kind() == 'V' && dtype.itemsize() == 2 && text(dtype) == "bfloat16")
    return remember(shared_bfloat16), Storage::bfloat16;
  return std::nullopt;
}

// Quicker, for the dtype objects that arrays share.
std::optional<Storage> storage_of(const PyObject* dtype) {
  if (dtype == shared_dtype<float>()) return Storage::float32;
  if (dtype == shared_dtype<double>()) return Storage::float64;
  if (dtype && dtype == shared_bfloat16) return Storage::bfloat16;
  if (dtype && dtype == shared_half) return Storage::float16;
  return std::nullopt;
}

// The same for states, which may be in 8 bits.
std::optional<Storage> state_storage_of(const PyObject* dtype) {
  if (dtype == shared_dtype<std::int8_t>()) return Storage::int8;
  if (dtype == shared_dtype<std::uint8_t>()) return Storage::uint8;
  return storage_of(dtype);
}

constexpr int readable = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;

void check_no_mask(const py::array& array, const Label& label) {
  const bool is_subclass =
      py::type::of(array).ptr() != reinterpret_cast<PyObject*>(py::detail::npy_api::get().PyArray_Type_);
  if (is_subclass && py::isinstance(array, py::module_::import("numpy.ma").attr("MaskedArray")))
    throw py::type_error(label + " must be a numpy.ndarray, got a masked array, whose mask would be ignored");
}

void check_layout(const py::array& array, const Label& label) {
  const py::dtype dtype = array.dtype();
  if (!dtype.attr("isnative").cast<bool>())
    throw py::type_error(label + " must have the byte order of this machine, got dtype " + text(dtype));
  const int flags = array.flags();
  if (!(flags & py::array::c_style))
    throw py::value_error(label + " must be C-contiguous, got shape " + shape_text(array) + " with strides " +
                          text(array.attr("strides")));
  if (!(flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_))
    throw py::value_error(label + " must be aligned to its " + std::to_string(dtype.itemsize()) +
                          "-byte elements, got address " + text(array.attr("ctypes").attr("data")));
}

// What every array must be to be read in place, whatever its role.
Memory check_memory(const py::handle& object, const Label& label) {
  // The quick way, which nearly every array goes at every step, asks what the slow way asks, and has no messages.
  if (Py_TYPE(object.ptr()) == py::detail::npy_api::get().PyArray_Type_) {
    const auto* array = py::detail::array_proxy(object.ptr());
    const auto storage = storage_of(array->descr);
    if (storage && (array->flags & readable) == readable) {
      std::int64_t size = 1;
      for (int i = 0; i < array->nd; ++i) size *= array->dimensions[i];
      return {reinterpret_cast<std::uintptr_t>(array->data), size, *storage};
    }
  }
  if (!py::isinstance<py::array>(object))
    return check_memory(view(py::reinterpret_borrow<py::object>(object), label), label);
  const auto array = py::reinterpret_borrow<py::array>(object);
  check_no_mask(array, label);
  const py::dtype dtype = array.dtype();
  const auto storage = storage_of(dtype);
  if (!storage)
    throw py::type_error(label + " must have dtype float32, float64, bfloat16 or float16, got " + text(dtype));
  check_layout(array, label);
  return {reinterpret_cast<std::uintptr_t>(array.data()), array.size(), *storage};
}

void check_writeable(const py::handle& object, const Label& label) {
  if (!(py::detail::array_proxy(object.ptr())->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_))
    throw py::value_error(label + " is read-only, so it cannot be updated in place");
}

Memory check_writeable_memory(const py::handle& object, const Label& label) {
  const Memory memory = check_memory(object, label);
  check_writeable(object, label);
  return memory;
}

// What a Plan keeps. States alone may be in 8 bits; `gradient`: a state that steps only read; `low_bits`: what
// parameters in bfloat16 differ by from float32.
enum class Role { param, state, gradient, low_bits };

Memory check_state_memory(const py::handle& object, const Label& label) {
  if (py::isinstance<py::array>(object)) {
    const auto storage = state_storage_of(py::detail::array_proxy(object.ptr())->descr);
    if (storage && is_blocked(*storage)) {
      const auto array = py::reinterpret_borrow<py::array>(object);
      check_no_mask(array, label);
      check_layout(array, label);
      return {reinterpret_cast<std::uintptr_t>(array.data()), array.size(), *storage};
    }
  }
  return check_memory(object, label);
}

Memory check_low_bits(const py::handle& object, const Label& label) {
  if (!py::isinstance<py::array_t<std::uint16_t>>(object)) {
    const bool is_array = py::isinstance<py::array>(object);
    const py::object what = is_array ? object.attr("dtype") : py::type::of(object).attr("__name__");
    throw py::type_error(label + " must be a NumPy array of dtype uint16, got " + text(what));
  }
  const auto array = py::reinterpret_borrow<py::array>(object);
  check_no_mask(array, label);
  check_layout(array, label);
  return {reinterpret_cast<std::uintptr_t>(array.data()), array.size(), Storage::bfloat16};
}

Memory check_kept_memory(const py::handle& object, const Label& label, Role role) {
  const Memory memory = role == Role::low_bits ? check_low_bits(object, label)
                        : role == Role::state  ? check_state_memory(object, label)
                                               : check_memory(object, label);
  if (role != Role::gradient) check_writeable(object, label);
  return memory;
}

void check_same_dtype(const Memory& memory, const Label& label, const Memory& param, const Label& param_label) {
  if (memory.storage != param.storage)
    throw py::type_error(label + " must have the dtype of " + param_label + ", " + name_of(param.storage) + ", got " +
                         name_of(memory.storage) + "; nothing is converted silently");
}

void check_gradient_dtype(const Memory& grad, const Label& label, const Memory& param, const Label& param_label) {
  if (!gradient_fits(grad.storage, param.storage))
    throw py::type_error(label + " must not be wider than the arithmetic of " + param_label + ", which is " +
                         name_of(param.storage) + ", got " + name_of(grad.storage) + "; nothing is converted silently");
}

void check_state_dtype(const State& kind, const Memory& state, const Label& label, const Memory& param,
                       const Label& param_label) {
  if (!state_fits(kind, state.storage, param.storage))
    throw py::type_error(label + " cannot have dtype " + name_of(state.storage) + " beside " + param_label +
                         ", which is " + name_of(param.storage));
}

// The same for an array of another library that can be looked at quickly; nothing where the checks above must say why.
std::optional<Memory> quick_memory(const dlpack::Tensor& tensor) {
  const auto storage = gradstep::storage_of(tensor);
  if (!storage || !is_contiguous(tensor) || lacks_memory(tensor)) return std::nullopt;
  return Memory{address(tensor), element_count(tensor), *storage};
}

bool same_shape(const py::array& a, const py::array& b, py::ssize_t leading = 0) {
  return a.ndim() == b.ndim() + leading && std::equal(b.shape(), b.shape() + b.ndim(), a.shape() + leading);
}

void check_same_shape(const py::array& array, const Label& label, const py::array& param, const Label& param_label) {
  if (!same_shape(array, param))
    throw py::value_error(label + " must have the shape of " + param_label + ", " + shape_text(param) + ", got " +
                          shape_text(array));
}

Shape shape_of(const py::array& array) { return {array.shape(), array.shape() + array.ndim()}; }

void check_shape(const py::array& array, const Label& label, const Shape& shape) {
  if (shape_of(array) != shape)
    throw py::value_error(label + " must have the shape " + text(py::tuple(py::cast(shape))) + ", got " +
                          shape_text(array));
}

// Which rows of a parameter a gradient has.
RowIndices check_indices(const py::object& object, const Label& label) {
  const auto array = py::reinterpret_borrow<py::array>(object);
  check_no_mask(array, label);
  const py::dtype dtype = array.dtype();
  if (dtype.kind() != 'i' || dtype.itemsize() < 4)
    throw py::type_error(label + " must have dtype int32 or int64, got " + text(dtype));
  check_layout(array, label);
  if (array.ndim() != 1) throw py::value_error(label + " must have one axis, got shape " + shape_text(array));
  return {array.data(), dtype.itemsize() == 8, array.size()};
}

void check_row_shape(const py::array& rows, const Label& label, std::int64_t count, const py::array& param,
                     const Label& param_label) {
  py::tuple wanted = param.attr("shape");
  wanted = py::make_tuple(count) + wanted[py::slice(1, param.ndim(), 1)];
  if (!wanted.equal(rows.attr("shape")))
    throw py::value_error(label + " must have a row of " + param_label + " for each index, shape " + text(wanted) +
                          ", got " + shape_text(rows));
}

// Plan ----------------------------------------------------------------------------------------------------------------

using Arrays = std::vector<py::object>;

Arrays items(const py::object& sequence) {
  const auto fast =
      py::reinterpret_steal<py::object>(PySequence_Fast(sequence.ptr(), "a sequence of arrays is needed"));
  if (!fast) throw py::error_already_set();
  PyObject** const first = PySequence_Fast_ITEMS(fast.ptr());
  Arrays arrays;
  arrays.reserve(static_cast<std::size_t>(PySequence_Fast_GET_SIZE(fast.ptr())));
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(fast.ptr()); ++i)
    arrays.push_back(py::reinterpret_borrow<py::object>(first[i]));
  return arrays;
}

// Checks the arrays of a Plan before its states exist.
void check_params(const Arrays& params, const std::string& noun, const std::vector<std::string>& suffixes) {
  Claims<> claims;
  for (std::size_t i = 0; i < params.size(); ++i)
    claims.add(check_writeable_memory(params[i], Label{noun, suffixes[i]}), Label{noun, suffixes[i]});
  claims.sort_and_check();
}

// An array that steps write to, or that they read again and again, as it was when the Plan was made.
class Target {
 public:
  Target(py::object object, const Label& label, Role role)
      : memory(check_kept_memory(object, label, role)),
        role_(role),
        array_(std::move(object)),
        count_(static_cast<int>(array_.ndim())) {
    const int here = std::min(count_, few);
    std::copy(array_.shape(), array_.shape() + here, first_);
    rest_.assign(array_.shape() + here, array_.shape() + count_);
    const PyObject* dtype = py::detail::array_proxy(array_.ptr())->descr;
    if (state_storage_of(dtype)) dtype_ = dtype;
  }

  const py::array& array() const { return array_; }

  // The length of the first axis.
  std::int64_t rows() const { return first_[0]; }

  // Whether an object is plainly an array of this shape and type that begins there and has these flags. What is not
  // plain needs the longer checks.
  bool resembles(const py::handle& object, std::uintptr_t begin, int flags) const {
    if (Py_TYPE(object.ptr()) != py::detail::npy_api::get().PyArray_Type_) return false;
    const auto* array = py::detail::array_proxy(object.ptr());
    return reinterpret_cast<std::uintptr_t>(array->data) == begin && array->descr == dtype_ &&
           (array->flags & flags) == flags && same_shape(array->nd, array->dimensions);
  }

  // Whether an array of another library has this shape.
  bool has_shape_of(const dlpack::Tensor& tensor) const { return same_shape(tensor.ndim, tensor.shape); }

  // The caller holds the array too, and NumPy can resize, retype or freeze it behind our back.
  void check_unchanged(const Label& label) const {
    const bool written = role_ != Role::gradient;
    if (resembles(array_, memory.begin, readable | (written ? py::detail::npy_api::NPY_ARRAY_WRITEABLE_ : 0))) return;
    const Memory now = check_kept_memory(array_, label, role_);
    if (!(now == memory && same_shape(static_cast<int>(array_.ndim()), array_.shape())))
      throw py::value_error(label + " was resized, reshaped or retyped after the optimizer was made");
  }

  Memory memory;

 private:
  template <class Size>
  bool same_shape(int count, const Size* sizes) const {
    const int here = std::min(count, few);
    return count == count_ && std::equal(sizes, sizes + here, first_) &&
           std::equal(sizes + here, sizes + count, rest_.begin(), rest_.end());
  }

  // The shape is kept in place as far as shapes usually go: a step over many arrays reads that of each.
  static constexpr int few = 4;
  Role role_;
  py::array array_;
  int count_;
  py::ssize_t first_[few];
  std::vector<py::ssize_t> rest_;
  const PyObject* dtype_ = nullptr;  // one that NumPy's arrays share
};

// What a step does to the gradients: grad_scale, clip_norm, clip_value, zero_grad.
using TreatmentTuple = std::tuple<double, std::optional<double>, std::optional<double>, bool>;

Treatment treatment_of(const TreatmentTuple& tuple) {
  return std::apply([](auto... members) { return Treatment{members...}; }, tuple);
}

// What a step takes from Python beside the gradients: t before the step, hyper-parameters in the rule's order, weight
// decay, maximize, and the row where a state has rows.
using Scalars = std::tuple<std::int64_t, std::vector<double>, double, bool, std::int64_t>;

// What a step whose caller wanted the gradients measured tells: their norm, whether it was clipped, whether the step
// was skipped.
using Report = std::tuple<double, bool, bool>;

// A rule bound to parameters and states. It keeps them alive and counts the steps.
class Plan {
 public:
  // `nouns` names the parameters, the gradients and the rule's states in messages, `suffixes` the arrays of each.
  // The state that has rows may have an axis for them before the parameter's axes: step(row=...) picks one. The second
  // gradient may be left out here, and then comes with each step. States after those of the rule are only kept apart
  // from what steps read. `seen` and `row_weights` have an item per row: steps mark the rows that they see, and every
  // so many steps as there are rows, the rows seen are summed again. `by_rows`: a gradient is a pair of indices and
  // rows, and a step is one at those rows alone. Steps also write `copies` of the parameters, in 16 bits, whose noun is
  // the last one; with `low_bits`, parameters in bfloat16 have the steps of the float32 that both make.
  Plan(const std::string& rule, Arrays params, std::vector<Arrays> states, std::vector<std::string> nouns,
       std::vector<std::string> suffixes, bool skip_nonfinite, bool flush_denormals, bool refuse_nonfinite,
       std::optional<py::array_t<bool>> seen, const std::optional<py::array_t<double>>& row_weights, bool by_rows,
       const std::optional<Arrays>& copies, const std::optional<Arrays>& low_bits)
      : rule_(rule_named(rule)),
        by_rows_(by_rows),
        nouns_(std::move(nouns)),
        suffixes_(std::move(suffixes)),
        skip_nonfinite_(skip_nonfinite),
        refuse_nonfinite_(refuse_nonfinite),
        denormals_(flush_denormals ? Denormals::flush : Denormals::keep),
        kept_(py::cast(seen), py::cast(row_weights)) {
    const Spec& spec = this->spec();
    const auto state_names = static_cast<std::size_t>(state_count(spec));
    if (states.size() < state_names || nouns_.size() != 2 + states.size() + (copies ? 1 : 0) ||
        suffixes_.size() != params.size())
      throw py::value_error(rule + ": wrong number of nouns, states or suffixes");
    rows_noun_ = "rows of " + nouns_[1];
    indices_noun_ = "indices of " + nouns_[1];
    if (seen && (seen->size() == 0 || params.empty()))
      throw py::value_error(rule + ": seen must have an item per row, of one row and one parameter at the least");
    if (seen) rows_ = {seen->size(), marks_ = seen->mutable_data(), row_weights ? row_weights->data() : nullptr};
    arrives_ = spec.second_gradient >= 0 && states[static_cast<std::size_t>(spec.second_gradient)].empty();
    if (flush_denormals && !can_flush_denormals())
      throw py::value_error("flush_denormals=True is not supported on this processor by this build");
    for (std::size_t i = 0; i < params.size(); ++i) {
      Slot slot{Target(params[i], label(0, i), Role::param), 0, {}, {}};
      const Memory& param = slot.param.memory;
      const Storage arithmetic = arithmetic_of(param.storage);
      const bool single_precision = arithmetic == Storage::float32;
      if (!takes_any_storage() && !is_wide(param.storage))
        throw py::type_error(label(0, i) + " must have dtype float32 or float64 for " + rule + ", got " +
                             name_of(param.storage));
      slot.stored.param = param.storage;
      slot.is_stored = param.storage != arithmetic;
      if (by_rows && slot.param.array().ndim() == 0)
        throw py::value_error(label(0, i) + " must have rows, along its first axis, got shape ()");
      Job job{nullptr,
              single_precision ? &float32_ : &float64_,
              {param.data(), nullptr, {}},
              param.size,
              storage_bytes[static_cast<int>(arithmetic)]};
      job.buffers.matrices = matrices_of(spec, shape_of(slot.param.array()));
      (single_precision ? single_precision_ : double_precision_) = true;
      size_ += param.size;
      claims_.add(param, label(0, i));
      for (std::size_t k = 0; k < states.size(); ++k) {
        if (arrives_ && static_cast<int>(k) == spec.second_gradient) continue;
        const bool is_read = k < state_names && is_gradient(spec, static_cast<int>(k));
        Target state(states[k].at(i), label(2 + k, i), is_read ? Role::gradient : Role::state);
        if (takes_any_storage())
          check_state_dtype(k < state_names ? spec.states[k] : State(), state.memory, label(2 + k, i), param,
                            label(0, i));
        else
          check_same_dtype(state.memory, label(2 + k, i), param, label(0, i));
        if (static_cast<int>(k) == spec.row_state && same_shape(state.array(), slot.param.array(), 1) &&
            state.array().shape(0) > 0)
          slot.rows = state.array().shape(0);
        else if (is_blocked(state.memory.storage))
          check_shape(state.array(), label(2 + k, i), {blocks_of(param.size), held_block});
        else if (k >= state_names || spec.row_factor < 0)
          check_same_shape(state.array(), label(2 + k, i), slot.param.array(), label(0, i));
        else
          check_shape(state.array(), label(2 + k, i),
                      state_shape(spec, static_cast<int>(k), shape_of(slot.param.array())));
        claims_.add(state.memory, label(2 + k, i));
        if (k < state_names) {
          job.buffers.states[k] = state.memory.data();
          slot.stored.states[k] = state.memory.storage;
          slot.is_stored |= state.memory.storage != arithmetic;
        }
        states_.push_back({std::move(state), 2 + k, i});
        if (static_cast<int>(k) == spec.row_state) slot.table = states_.back().target.memory.data();
      }
      if (copies) keep_copy(slot, copies->at(i), i);
      if (low_bits) keep_low_bits(slot, low_bits->at(i), i);
      if (seen && (slot.rows != rows_.count || (row_weights && row_weights->size() != rows_.count)))
        throw py::value_error(rule + ": seen and row_weights must have an item per row");
      jobs_.push_back(job);
      slots_.push_back(std::move(slot));
    }
    claims_.sort_and_check();
  }

  Plan(const Plan&) = delete;  // its jobs point into it
  Plan& operator=(const Plan&) = delete;

  // Raises unless every parameter and state is as it was when the Plan was made.
  void check() const {
    for (std::size_t i = 0; i < slots_.size(); ++i) slots_[i].param.check_unchanged(label(0, i));
    for (const KeptState& state : states_) state.target.check_unchanged(label(state.noun, state.slot));
    for (const Beside& beside : beside_) beside.target.check_unchanged({*beside.noun, suffixes_[beside.slot]});
  }

  // Raises unless step() would take these gradients. Returns them in a list, as NumPy arrays where need be.
  Arrays check_grads(const py::object& sequence, bool zero_grad) {
    if (by_rows_) return check_row_grads(sequence, zero_grad);
    Arrays grads = gradients(sequence, 1, &Slot::grad, zero_grad);
    if (zero_grad && !grads_apart_) cleared();
    return grads;
  }

  // The same for the second gradients.
  Arrays check_second_grads(const py::object& sequence) {
    return gradients(sequence, second_noun(), &Slot::second, /*zero_grad=*/false);
  }

  // Raises unless step() would take this treatment.
  void check_treatment(const TreatmentTuple& treatment) const {
    gradstep::check_treatment(treatment_of(treatment), single_precision_);
  }

  // The sums of squares of all blocks, of which the norm is made: of gradients times `grad_scale`, and then `unit`.
  py::array_t<double> block_sums(const py::object& sequence, double grad_scale, double unit) {
    const Arrays held = check_grads(sequence, /*zero_grad=*/false);
    const Table& table = active_level().table();
    prepare_jobs(*table.entries[rule_], row_);
    const int threads = get_num_threads();
    const auto count = static_cast<std::int64_t>(jobs_.size());
    py::array_t<double> sums(static_cast<py::ssize_t>(count_blocks(jobs_.data(), count)));
    double* const first = sums.mutable_data();
    const py::gil_scoped_release release;
    sum_blocks(jobs_.data(), count, threads, denormals_, table, grad_scale, unit, first);
    return sums;
  }

  // Raises if the array shares memory with what steps write to.
  void check_apart(const py::object& array, const std::string& name) const {
    const std::string no_suffix;
    const Label label{name, no_suffix};
    const bool is_half = py::isinstance<py::array_t<std::uint16_t>>(array);
    claims_.check_free(is_half ? check_low_bits(array, label) : check_state_memory(array, label), label);
  }

  // Without scalars, those of the step before hold on. What raises keeps nothing. `norm` is that of more than these
  // gradients, which are finite.
  std::optional<Report> step(const py::object& grads, const std::optional<TreatmentTuple>& treatments,
                             const std::optional<Scalars>& scalars, const std::optional<py::object>& second_grads,
                             bool acquired, const std::optional<double>& norm) {
    std::optional<Hold> hold;
    if (!acquired) hold.emplace(*this);
    const FloatMode mode(Denormals::keep);
    Step step = next_;
    std::int64_t row = row_;
    if (scalars)
      take(*scalars, step, row);
    else if (!ready_)
      throw std::runtime_error("the first step needs scalars");
    const Table& table = active_level().table();
    const Entry& entry = *table.entries[rule_];
    const int threads = get_num_threads();
    const auto treatment = treatments ? treatment_of(*treatments) : Treatment();
    gradstep::check_treatment(treatment, single_precision_);
    check_integer("t", t_ + 1, 1, max_integer);
    // Our own references: the caller's list can change while Python runs elsewhere. Then all that is written to,
    // because the gradients can be of classes whose Python code runs when they are looked at.
    const Arrays held = check_grads(grads, treatment.zero_grad);
    if (arrives_ != second_grads.has_value())
      throw py::value_error(std::string(entry.spec.name) + ": second_grads are needed, or too many");
    const Arrays second_held = arrives_ ? check_second_grads(*second_grads) : Arrays{};
    if (arrives_ && treatment.zero_grad) check_second_apart();
    check();
    prepare_jobs(entry, row, treatment.zero_grad);
    step.t = t_ + 1;
    step.fresh_row = marks_ && !marks_[row];
    const bool resums = marks_ && step.t % rows_.count == 0;
    const bool asked = treatment.clip_norm || skip_nonfinite_;
    std::vector<Job> second = asked && arrives_ ? second_jobs() : std::vector<Job>{};
    Outcome outcome;
    {
      // The slots and `held` keep the memory alive, and nothing below touches a Python object. A small step is over
      // before another thread could have taken the lock.
      constexpr std::int64_t worth_releasing = 4096;
      std::optional<py::gil_scoped_release> release;
      if (by_rows_ || (resums ? size_ * (1 + rows_.count) : size_) >= worth_releasing) release.emplace();
      Batch batch{jobs_.data(),
                  static_cast<std::int64_t>(jobs_.size()),
                  single_precision_ ? &float32_ : nullptr,
                  double_precision_ ? &float64_ : nullptr,
                  threads,
                  denormals_};
      if (by_rows_) {
        touch_rows(threads, /*merges=*/!asked);
        batch.jobs = row_jobs_.jobs();
        batch.count = row_jobs_.count();
      }
      outcome = take_step(batch, table, rule_, step, treatment, asked || refuse_nonfinite_,
                          second.empty() ? nullptr : second.data(), norm);
      if (outcome.usable && by_rows_ && treatment.zero_grad) row_jobs_.zero_summed();
      if (outcome.usable && marks_) marks_[row] = true;
      if (outcome.usable && resums) sum_again(entry, threads);
    }
    if (!outcome.usable && !skip_nonfinite_) {
      const std::int64_t job = std::max<std::int64_t>(outcome.norm.culprit, 0);
      const auto culprit = static_cast<std::size_t>(by_rows_ ? row_jobs_.owner(job) : job);
      throw py::value_error(why_unusable(outcome.norm, label(1, culprit), nouns_[1], treatment));
    }
    if (outcome.usable) ++t_;
    next_ = step;
    row_ = row;
    ready_ = true;
    if (!asked) return std::nullopt;
    return Report{outcome.norm.value, outcome.clipped, !outcome.usable};
  }

  // Makes a row one that was never seen, and sums the others again. Whether it was seen.
  bool forget(std::int64_t row) {
    const Hold hold(*this);
    check();
    if (row < 0 || row >= rows_.count) throw py::index_error("no row " + std::to_string(row));
    if (!marks_[row]) return false;
    const Entry& entry = *active_level().table().entries[rule_];
    const int threads = get_num_threads();
    const py::gil_scoped_release release;
    marks_[row] = false;
    sum_again(entry, threads);
    return true;
  }

  // A step, or whoever reads or writes all arrays from Python, has the Plan to itself; another thread is told so
  // rather than made to wait, because a lock that is held during fork() would never be free in the child. Nor does a
  // hold outlive fork(): its thread does not exist in the child.
  void acquire() {
    if (busy_ && forks_at_hold_ == fork_count()) throw std::runtime_error(in_use);
    busy_ = true;
    forks_at_hold_ = fork_count();
  }
  void release() { busy_ = false; }

  // How what is written becomes 16 or 8 bits, from the next step on. Where a parameter is a part of an array,
  // `array` is the number of that one, and `first` the place of the part in it.
  void set_rounding(bool stochastic, std::uint64_t seed, std::int64_t array, std::int64_t first) {
    if (array < 0 || first < 0 || first % stored_piece != 0)
      throw py::value_error("first must be a multiple of " + std::to_string(stored_piece) + ", got " +
                            std::to_string(first));
    rounding_ = {stochastic, seed, array, first};
  }

  std::int64_t t() const { return t_; }

  void set_t(std::int64_t t) {
    check_integer("t", t, 0, max_integer);
    t_ = t;
  }

 private:
  struct Slot {
    Target param;
    std::int64_t rows;      // of the state that has rows; 0: it has the parameter's own shape
    Memory grad, second;    // the last ones that were found to fit
    char* table = nullptr;  // that state
    RowIndices indices{};   // of the rows that the gradient has
    Stored stored{};
    bool is_stored = false;  // whether the parameter or a state is held in other bits than the arithmetic's
  };

  struct KeptState {
    Target target;
    std::size_t noun, slot;
  };

  // A copy of a parameter, or its low bits.
  struct Beside {
    Target target;
    const std::string* noun;
    std::size_t slot;
  };

  struct Hold {
    explicit Hold(Plan& plan) : plan(plan) { plan.acquire(); }
    ~Hold() { plan.release(); }
    Plan& plan;
  };

  // Has steps write a copy too.
  void keep_copy(Slot& slot, const py::object& array, std::size_t i) {
    const Label label{nouns_.back(), suffixes_[i]};
    Target copy(array, label, Role::param);
    if (slot.param.memory.storage != Storage::float32 || !takes_any_storage())
      throw py::type_error(label + " is a copy of " + this->label(0, i) + ", which must be float32, got " +
                           name_of(slot.param.memory.storage));
    if (is_wide(copy.memory.storage))
      throw py::type_error(label + " must have dtype bfloat16 or float16, got " + name_of(copy.memory.storage));
    check_same_shape(copy.array(), label, slot.param.array(), this->label(0, i));
    slot.stored.copy = copy.memory.data();
    slot.stored.copy_storage = copy.memory.storage;
    keep_beside(slot, std::move(copy), label);
  }

  void keep_low_bits(Slot& slot, const py::object& array, std::size_t i) {
    const Label label{low_bits_noun_, suffixes_[i]};
    Target low(array, label, Role::low_bits);
    if (slot.param.memory.storage != Storage::bfloat16)
      throw py::type_error(label + " go with bfloat16, got " + name_of(slot.param.memory.storage) + " in " +
                           std::string(this->label(0, i)));
    check_same_shape(low.array(), label, slot.param.array(), this->label(0, i));
    slot.stored.low = reinterpret_cast<std::uint16_t*>(low.memory.data());
    keep_beside(slot, std::move(low), label);
  }

  void keep_beside(Slot& slot, Target target, const Label& label) {
    slot.is_stored = true;
    claims_.add(target.memory, label);
    beside_.push_back({std::move(target), &label.noun, slots_.size()});
  }

  // Checks scalars, and writes them to a step and its row.
  void take(const Scalars& scalars, Step& step, std::int64_t& row) const {
    const auto& [t, hyper, weight_decay, maximize, given_row] = scalars;
    if (t != t_) throw std::runtime_error(in_use);  // they were formed for a step that another thread has taken
    check_hypers(spec(), hyper.data(), static_cast<std::int64_t>(hyper.size()), weight_decay, single_precision_);
    for (const Slot& slot : slots_)
      if (slot.rows > 0 && (given_row < 0 || given_row >= slot.rows))
        throw py::index_error("row must be at least 0 and below " + std::to_string(slot.rows) + ", got " +
                              std::to_string(given_row));
    row = given_row;
    std::copy(hyper.begin(), hyper.end(), step.hyper);
    step.weight_decay = weight_decay;
    step.maximize = maximize;
  }

  const Spec& spec() const { return active_level().table().entries[rule_]->spec; }

  Label label(std::size_t noun, std::size_t i) const { return {nouns_[noun], suffixes_[i]}; }
  Label grad_label(std::size_t i) const { return {by_rows_ ? rows_noun_ : nouns_[1], suffixes_[i]}; }
  Label indices_label(std::size_t i) const { return {indices_noun_, suffixes_[i]}; }

  // Brings the jobs up to date. What is the same stays unwritten: other threads have it in their caches.
  void prepare_jobs(const Entry& entry, std::int64_t row, bool zero_grad = false) {
    const auto assign = [](auto& place, auto value) {
      if (place != value) place = value;
    };
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      Slot& slot = slots_[i];
      Job& job = jobs_[i];
      const bool single_precision = job.constants == &float32_;
      assign(job.kernel, single_precision ? &entry.float32 : &entry.float64);
      assign(job.buffers.grad, static_cast<void*>(slot.grad.data()));
      if (slot.rows > 0) job.buffers.states[entry.spec.row_state] = slot.table + row * job.size * job.item_size;
      if (arrives_) assign(job.buffers.states[entry.spec.second_gradient], static_cast<void*>(slot.second.data()));
      const bool is_stored = slot.is_stored || slot.grad.storage != arithmetic_of(slot.param.memory.storage);
      if (is_stored)
        hold_as(job, slot.stored, slot.grad.storage, active_level().table(), rounding_, t_ + 1,
                static_cast<std::int64_t>(i), zero_grad);
      else
        assign(job.stored, nullptr);
    }
  }

  // Needs no Python.
  void sum_again(const Entry& entry, int threads) {
    prepare_jobs(entry, /*row=*/0);
    sum_rows(jobs_.data(), static_cast<std::int64_t>(jobs_.size()), threads, denormals_, active_level().table(),
             entry.spec, rows_);
  }

  // The jobs, with the second gradients in the place of the first.
  std::vector<Job> second_jobs() const {
    std::vector<Job> jobs = jobs_;
    for (std::size_t i = 0; i < jobs.size(); ++i) jobs[i].buffers.grad = slots_[i].second.data();
    return jobs;
  }

  bool takes_any_storage() const { return !by_rows_ && gradstep::takes_any_storage(spec()); }

  bool fits(const Memory& grad, const Memory& param) const {
    return takes_any_storage() ? gradient_fits(grad.storage, param.storage) : grad.storage == param.storage;
  }

  std::size_t second_noun() const { return 2 + static_cast<std::size_t>(spec().second_gradient); }

  Arrays one_per_slot(const py::object& sequence, std::size_t noun) const {
    Arrays grads = items(sequence);
    if (grads.size() != slots_.size())
      throw py::value_error(nouns_[noun] + " must hold " + std::to_string(slots_.size()) + " arrays, got " +
                            std::to_string(grads.size()));
    return grads;
  }

  Arrays gradients(const py::object& sequence, std::size_t noun, Memory Slot::* known, bool zero_grad) {
    Arrays grads = one_per_slot(sequence, noun);
    for (std::size_t i = 0; i < grads.size(); ++i) check_gradient(grads[i], label(noun, i), i, known, zero_grad);
    return grads;
  }

  void check_gradient(py::object& grad, const Label& name, std::size_t i, Memory Slot::* known, bool zero_grad) {
    Slot& slot = slots_[i];
    // What was checked before, and lay apart, does so now.
    const int flags = readable | (zero_grad ? py::detail::npy_api::NPY_ARRAY_WRITEABLE_ : 0);
    if ((slot.*known).storage == slot.param.memory.storage && slot.param.resembles(grad, (slot.*known).begin, flags))
      return;
    dlpack::Tensor tensor;
    // What is written to goes by a way that knows what is read-only.
    if (!zero_grad && !py::isinstance<py::array>(grad) && look(grad.ptr(), tensor)) {
      const std::optional<Memory> memory = quick_memory(tensor);
      if (memory && fits(*memory, slot.param.memory) && slot.param.has_shape_of(tensor) &&
          !((memory->size == 1 || memory->storage != slot.param.memory.storage) && is_negated(grad)))
        return found_to_fit(*memory, name, slot.*known);
    }
    // Arithmetic on 0-d arrays gives NumPy scalars, which are read by value.
    if (!zero_grad && !py::isinstance<py::array>(grad) &&
        py::isinstance(grad, py::module_::import("numpy").attr("generic")))
      grad = py::module_::import("numpy").attr("asarray")(grad);
    grad = view(grad, name);
    const Memory memory = zero_grad ? check_writeable_memory(grad, name) : check_memory(grad, name);
    if (takes_any_storage())
      check_gradient_dtype(memory, name, slot.param.memory, label(0, i));
    else
      check_same_dtype(memory, name, slot.param.memory, label(0, i));
    check_same_shape(py::reinterpret_borrow<py::array>(grad), name, slot.param.array(), label(0, i));
    found_to_fit(memory, name, slot.*known);
  }

  void found_to_fit(const Memory& memory, const Label& name, Memory& known) {
    if (memory == known) return;
    claims_.check_free(memory, name);
    known = memory;
    grads_apart_ = false;
  }

  // Gradients of rows: a pair of indices and rows for each parameter. The pairs taken apart.
  Arrays check_row_grads(const py::object& sequence, bool zero_grad) {
    Arrays held;
    for (const py::object& given : one_per_slot(sequence, 1)) {
      const std::size_t i = held.size() / 2;
      const bool may_be_pair = py::isinstance<py::tuple>(given) || py::isinstance<py::list>(given);
      const Arrays pair = may_be_pair ? items(given) : Arrays{};
      if (pair.size() != 2)
        throw py::type_error(label(1, i) + " must be a pair (indices, rows), got " +
                             text(py::type::of(given).attr("__name__")) +
                             (may_be_pair ? " of " + std::to_string(pair.size())
                                          : "; dense gradients are for dense rules, such as Adam"));
      const py::object indices = view(pair[0], indices_label(i)), rows = view(pair[1], grad_label(i));
      Slot& slot = slots_[i];
      slot.indices = check_indices(indices, indices_label(i));
      const Memory memory = zero_grad ? check_writeable_memory(rows, grad_label(i)) : check_memory(rows, grad_label(i));
      check_same_dtype(memory, grad_label(i), slot.param.memory, label(0, i));
      check_row_shape(py::reinterpret_borrow<py::array>(rows), grad_label(i), slot.indices.count, slot.param.array(),
                      label(0, i));
      claims_.check_free(memory_of(slot.indices), indices_label(i));
      found_to_fit(memory, grad_label(i), slot.grad);
      held.insert(held.end(), {indices, rows});
    }
    if (zero_grad) {
      const Claims<> written = cleared();
      for (std::size_t i = 0; i < slots_.size(); ++i)
        written.check_free(memory_of(slots_[i].indices), indices_label(i));
    }
    return held;
  }

  // Finds out which rows the gradients have, and sums those of the same row. Needs no Python.
  void touch_rows(int threads, bool merges) {
    row_jobs_.clear(merges);
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      const std::int64_t rows = slots_[i].param.rows();
      if (const auto wrong = row_jobs_.add(jobs_[i], rows, slots_[i].indices))
        throw std::invalid_argument(indices_label(i) + " must be at least 0 and below " + std::to_string(rows) +
                                    ", got " + std::to_string(wrong->index) + " at position " +
                                    std::to_string(wrong->position));
    }
    row_jobs_.sum(threads, denormals_);
  }

  // What zero_grad clears. No two overlap.
  Claims<> cleared() {
    Claims<> written;
    for (std::size_t i = 0; i < slots_.size(); ++i) written.add(slots_[i].grad, grad_label(i));
    try {
      written.sort_and_check();
    } catch (const std::invalid_argument& error) {
      throw py::value_error(error.what() + std::string(", so zero_grad would clear one before it is read"));
    }
    grads_apart_ = true;
    return written;
  }

  // A second gradient may be the first one itself, which is read at the same moment.
  void check_second_apart() {
    const Claims<> written = cleared();
    for (std::size_t i = 0; i < slots_.size(); ++i)
      if (!(slots_[i].second == slots_[i].grad)) written.check_free(slots_[i].second, label(second_noun(), i));
  }

  int rule_;
  bool by_rows_;  // whether gradients are pairs of indices and rows
  std::vector<std::string> nouns_, suffixes_;
  std::string rows_noun_, indices_noun_;
  const std::string low_bits_noun_ = "state low_bits";
  RowJobs row_jobs_;
  std::vector<Slot> slots_;
  std::vector<KeptState> states_;
  std::vector<Beside> beside_;
  std::vector<Job> jobs_;  // one per slot
  Constants float32_, float64_;
  Claims<> claims_;
  bool skip_nonfinite_, refuse_nonfinite_;
  Denormals denormals_;
  RoundingOptions rounding_;
  std::pair<py::object, py::object> kept_;  // what marks_ and rows_ point into
  bool* marks_ = nullptr;                   // which rows hold a gradient; null: nobody keeps account
  TableRows rows_{0, nullptr, nullptr};
  bool arrives_ = false;                                      // whether the second gradient comes with each step
  std::int64_t size_ = 0;                                     // elements of all parameters
  bool single_precision_ = false, double_precision_ = false;  // whether a parameter has it
  bool grads_apart_ = false;                                  // whether no two of Slot::grad overlap, if known
  bool busy_ = false;                                         // guarded by the GIL
  bool ready_ = false;                                        // whether next_ and row_ are known
  Step next_{};                                               // what the next step has without scalars,
  std::int64_t row_ = 0;                                      // and its row
  int forks_at_hold_ = 0;
  std::int64_t t_ = 0;
};

// Streams -------------------------------------------------------------------------------------------------------------

// Moves the memory that a step of a rule with so many states moves, and computes next to nothing.
void run_streams(const Arrays& written, const py::object& read) {
  if (written.empty() || written.size() > 1 + max_states)
    throw py::value_error("written must hold from 1 to " + std::to_string(1 + max_states) + " arrays, got " +
                          std::to_string(written.size()));
  const std::string written_noun = "written", read_noun = "read", no_suffix;
  const Memory grad = check_memory(read, Label{read_noun, no_suffix});
  Claims<> claims;
  claims.add(grad, read_noun);
  Buffers buffers{nullptr, grad.data(), {}};
  for (std::size_t i = 0; i < written.size(); ++i) {
    const std::string suffix = "[" + std::to_string(i) + "]";
    const Label label{written_noun, suffix};
    const Memory memory = check_writeable_memory(written[i], label);
    if (memory.storage != Storage::float32 || grad.storage != Storage::float32 || memory.size != grad.size)
      throw py::value_error(label + " must have the size of read, and both float32");
    claims.add(memory, label);
    (i == 0 ? buffers.param : buffers.states[i - 1]) = memory.data();
  }
  claims.sort_and_check();
  const Constants none{};
  const Job job{&active_level().table().float32_streams[written.size() - 1], &none, buffers, grad.size,
                grad.item_size()};
  const int threads = get_num_threads();
  const py::gil_scoped_release release;
  run(&job, 1, threads, Denormals::keep);
}

// The L2 norm over an array, in the order of clipping.
double norm(const py::object& array) {
  const std::string noun = "array", no_suffix;
  const Memory memory = check_memory(array, Label{noun, no_suffix});
  Constants none{};
  if (!is_wide(memory.storage))
    throw py::type_error(std::string("array must have dtype float32 or float64, got ") + name_of(memory.storage));
  Job job{nullptr, &none, {nullptr, memory.data(), {}}, memory.size, memory.item_size()};
  Constants* const float64 = memory.storage == Storage::float32 ? nullptr : &none;
  const Batch batch{&job, 1, nullptr, float64, get_num_threads(), Denormals::keep};
  const py::gil_scoped_release release;
  return grad_norm(batch, active_level().table(), 1).value;
}

// The norm that the blocks' sums of all processes come to, and whether all that was summed is finite. `total` has them
// summed, for gradients times a power of two.
std::pair<double, bool> norm_from(const std::function<double(double)>& total, bool single_precision) {
  const FloatMode mode(Denormals::keep);
  const Root root = root_of(total, !single_precision);
  return {root.value, root.finite};
}

double sum_of_blocks(py::array_t<double, py::array::c_style> sums) {
  const FloatMode mode(Denormals::keep);
  std::vector<double> tree(sums.data(), sums.data() + sums.size());
  return sum_tree(tree.data(), sums.size());
}

// The catalogue -------------------------------------------------------------------------------------------------------

std::vector<Spec> rules() {
  const Table& table = levels().first->table();
  std::vector<Spec> specs;
  for (int i = 0; i < table.size; ++i) specs.push_back(table.entries[i]->spec);
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
  for (std::size_t i = 0; i < names.size(); ++i) names[i] = spec.states[i].name;
  return names;
}

Names never_negative_names(const Spec& spec) {
  py::list names;
  for (int k = 0; k < state_count(spec); ++k)
    if (spec.states[k].never_negative) names.append(spec.states[k].name);
  return py::tuple(names);
}

Names factor_names(const Spec& spec) {
  return state_names(spec)[py::slice(elementwise_count(spec), state_count(spec), 1)].cast<py::tuple>();
}

Names gradient_names(const Spec& spec) {
  const py::tuple names = state_names(spec);
  return names[py::slice(state_count(spec) - spec.gradients, state_count(spec), 1)].cast<py::tuple>();
}

int streams(const Spec& spec) {
  const int written = 1 + static_cast<int>(state_count(spec)) - spec.gradients;
  return spec.streams > 0 ? spec.streams : 2 * written + 1 + spec.gradients;
}

int state_named(const Spec& spec, const std::string& state) {
  for (int k = 0; k < state_count(spec); ++k)
    if (state == spec.states[k].name) return k;
  throw py::key_error(std::string(spec.name) + " has no state " + state);
}

py::typing::Tuple<int, py::ellipsis> state_shape_by_name(const Spec& spec, const std::string& state,
                                                         const Shape& shape) {
  return py::tuple(py::cast(state_shape(spec, state_named(spec, state), shape)));
}

bool has_state_by_name(const Spec& spec, const std::string& state, std::size_t axes) {
  return has_state(spec, state_named(spec, state), axes);
}

py::typing::Optional<py::str> row_state(const Spec& spec) {
  if (spec.row_state < 0) return py::none();
  return py::str(spec.states[spec.row_state].name);
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
  m.attr("__version__") = gradstep_version();
  m.attr("c_api") = py::capsule(gradstep_get_api(), GRADSTEP_CAPSULE);
  m.attr("compiler") = compiler;
  m.attr("openmp") = openmp_version();
  m.attr("elements_per_thread") = elements_per_thread;
  m.attr("thread_limit") = thread_limit;

  py::class_<Spec>(m, "Rule", "What is known of an update rule: names, in the order of the C++ code.")
      .def_property_readonly("name", [](const Spec& spec) { return spec.name; })
      .def_property_readonly("hyperparameters", hyper_names)
      .def_property_readonly("states", state_names)
      .def_property_readonly("row_state", row_state, "The state that has a row per sample or batch, if one has.")
      .def_property_readonly("gradients", gradient_names, "The states that are gradients too: steps only read them.")
      .def_property_readonly(
          "decoupled", [](const Spec& spec) { return spec.decay == Decay::decoupled; },
          "Whether weight decay shrinks the parameter instead of joining the gradient.")
      .def_property_readonly("streams", streams,
                             "How many arrays as large as the parameter a step reads, and writes, taken together.")
      .def_property_readonly("never_negative", never_negative_names, "The states that are never negative.")
      .def_property_readonly("factors", factor_names, "The states that are factors per row and per column of matrices.")
      .def_property_readonly("any_storage", takes_any_storage,
                             "Whether memory may hold buffers in fewer bits than the arithmetic has.")
      .def_property_readonly(
          "has_trust", [](const Spec& spec) { return spec.has_trust; },
          "Whether each array has a factor of its own, which follows from norms over it.")
      .def("state_shape", state_shape_by_name, py::arg("state"), py::arg("shape"),
           "The shape of a state beside a parameter of this shape. Rows are an axis more, in front.")
      .def("has_state", has_state_by_name, py::arg("state"), py::arg("axes"),
           "Whether there is such a state beside a parameter of so many axes; otherwise it is empty.")
      .def("check_hyper", check_hyper_by_name, py::arg("name"), py::arg("value"), py::arg("single_precision"),
           "Raise unless the value lies in the range of this hyper-parameter, or of weight_decay.");
  m.def("rules", rules, "Every rule, in order of increasing complexity.");

  m.def(
      "shows_memory", [](const py::object& object) { return shows_memory(object); }, py::arg("thing"),
      "Whether an object is an array, of NumPy or any other library, or has a buffer.");
  m.def("view", view, py::arg("array"), py::arg("name"),
        "The memory of an array of any library, as a NumPy array: no copy is made.");
  m.def("check_params", check_params, py::arg("params"), py::arg("noun"), py::arg("suffixes"),
        "Raise unless each array can be updated in place and none overlaps another.");

  py::class_<Plan>(m, "Plan", "A rule bound to the memory of parameters and states.")
      .def(py::init<std::string, Arrays, std::vector<Arrays>, std::vector<std::string>, std::vector<std::string>, bool,
                    bool, bool, std::optional<py::array_t<bool>>, std::optional<py::array_t<double>>, bool,
                    std::optional<Arrays>, std::optional<Arrays>>(),
           py::arg("rule"), py::arg("params"), py::arg("states"), py::arg("nouns"), py::arg("suffixes"),
           py::arg("skip_nonfinite") = false, py::arg("flush_denormals") = false, py::arg("refuse_nonfinite") = false,
           py::arg("seen").noconvert() = py::none(), py::arg("row_weights").noconvert() = py::none(),
           py::arg("by_rows") = false, py::arg("copies") = py::none(), py::arg("low_bits") = py::none())
      .def("check", &Plan::check, "Raise unless every array is as it was when the plan was made.")
      .def("check_grads", &Plan::check_grads, py::arg("grads"), py::arg("zero_grad") = false,
           "Raise unless step() would take these gradients; return them, as NumPy arrays where need be.")
      .def("check_second_grads", &Plan::check_second_grads, py::arg("second_grads"),
           "The same for the second gradients.")
      .def("check_treatment", &Plan::check_treatment, py::arg("treatment"), "Raise unless step() would take it.")
      .def("block_sums", &Plan::block_sums, py::arg("grads"), py::arg("grad_scale"), py::arg("unit"),
           "The sum of squares of each block of the gradients, each element times both factors.")
      .def("check_apart", &Plan::check_apart, py::arg("array"), py::arg("name"),
           "Raise if the array shares memory with what steps write to.")
      .def("acquire", &Plan::acquire, "Keep other threads out until release(), or raise if one is in.")
      .def("release", &Plan::release)
      .def("step", &Plan::step, py::arg("grads"), py::arg("treatment") = py::none(), py::arg("scalars") = py::none(),
           py::arg("second_grads") = py::none(), py::arg("acquired") = false, py::arg("norm") = py::none(),
           "Update everything once, or raise and change nothing. The treatment of the gradients is\n"
           "(grad_scale, clip_norm or None, clip_value or None, zero_grad), the scalars are (t so far,\n"
           "hyper-parameters, weight_decay, maximize, row), those of the step before by default.\n"
           "`acquired` says that the caller has called acquire(). `norm` is that of all gradients, where\n"
           "these are a part of them: then it is not measured, and all are finite.\n"
           "Where clip_norm or skip_nonfinite had the gradients measured, return their norm, whether it\n"
           "was clipped, and whether the step was skipped.")
      .def("forget", &Plan::forget, py::arg("row"),
           "Make a row one that was never seen, and sum the others again. Return whether it was seen.")
      .def("set_rounding", &Plan::set_rounding, py::arg("stochastic"), py::arg("seed"), py::arg("array") = 0,
           py::arg("first") = 0,
           "Round what becomes 16 or 8 bits by chance, which the seed begins, or to the nearest.\n"
           "Parts of an array give its number and the place of their first element.")
      .def_property("t", &Plan::t, &Plan::set_t, "Steps taken so far.");

  define_finite_sum(m);
  define_conversions(m);
  define_tensor_steps(m);

  m.def("norm", norm, py::arg("array"), "The L2 norm over an array, summed in the order in which clipping does it.");
  m.def("norm_from", norm_from, py::arg("total"), py::arg("single_precision"),
        "The L2 norm of what is nowhere whole, and whether it is finite: total(unit) is the sum of the\n"
        "squares of all elements, each times that power of two.");
  m.def("sum_of_blocks", sum_of_blocks, py::arg("sums"), "The sum of blocks' sums, in the order of the norm.");
  m.def("streams", run_streams, py::arg("written"), py::arg("read"),
        "Read and write what a rule's step would, with next to no arithmetic: a limit to measure.");
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
