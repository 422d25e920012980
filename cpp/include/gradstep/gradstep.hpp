// gradstep for C++17: an optimizer that owns its states and counts its steps, over parameters that are yours.
//
//   gradstep::Optimizer<float> adam("adam", {{"lr", 1e-3}, {"beta1", 0.9}, {"beta2", 0.999}, {"eps", 1e-8},
//                                            {"bias_correction", 1}});
//   adam.add(weights);                  // a std::vector<float>, or a pointer and a size
//   adam.step({gradient.data()});
//
// It stands on gradstep.h alone. What goes wrong is a gradstep::error, before anything has changed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "gradstep/gradstep.h"

namespace gradstep {

/// A call that failed, and why.
class error : public std::runtime_error {
 public:
  error(gradstep_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  gradstep_status status() const noexcept { return status_; }

 private:
  gradstep_status status_;
};

/// How an optimizer takes all its steps.
struct Options {
  double weight_decay = 0;
  bool maximize = false;
  bool skip_nonfinite = false;   // NaN or infinity in a gradient skips the step, and is no error
  bool flush_denormals = false;  // denormal numbers count as 0 inside the step
};

/// What one step does to the gradients.
struct Treatment {
  double grad_scale = 1;             // they are first multiplied by this,
  std::optional<double> clip_norm;   // then scaled to have at most this norm, all together,
  std::optional<double> clip_value;  // then kept within plus and minus this,
  bool zero_grad = false;            // and set to 0 once they have been read
};

struct Result {
  double grad_norm;  // after grad_scale; 0 where neither clip_norm nor skip_nonfinite asked for it
  bool clipped;      // by clip_norm
  bool skipped;
};

/// A rule over parameters of one type. One thread at a time.
template <class T>
class Optimizer {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>, "parameters are float or double");

 public:
  /// `hyper` has every hyper-parameter of the rule by its name; a flag is 0 or 1. Rules with rows, or with more
  /// gradients than one, are for gradstep.h.
  Optimizer(const std::string& rule, const std::map<std::string, double>& hyper, const Options& options = {})
      : rule_(gradstep_find_rule(rule.c_str())), options_(options) {
    if (!rule_) fail(gradstep_last_error());
    while (const char* state = gradstep_state_name(rule_, static_cast<std::int32_t>(states_.size()))) {
      const auto place = static_cast<std::int32_t>(states_.size());
      if (gradstep_row_state(rule_) == place || gradstep_state_is_gradient(rule_, place))
        fail(rule + " needs " + state + " from the caller at each step, which is for gradstep.h");
      states_.push_back({state, {}});
    }
    while (const char* name = gradstep_hyper_name(rule_, static_cast<std::int32_t>(values_.size()))) {
      if (hyper.count(name) == 0) fail(rule + " needs the hyper-parameter " + name);
      names_.push_back(name);
      values_.push_back(hyper.at(name));
    }
    for (const auto& given : hyper) place_of(given.first);  // none that the rule does not have
    check(values_);
  }

  Optimizer(Optimizer&&) = default;
  Optimizer& operator=(Optimizer&&) = default;
  Optimizer(const Optimizer&) = delete;  // two would step the same parameters
  Optimizer& operator=(const Optimizer&) = delete;

  /// Adds parameters, which stay where they are while the optimizer lives. Their states begin as zeros.
  void add(T* param, std::size_t size) {
    if (t_ > 0) fail("parameters must be added before the first step");
    gradstep_array array{};
    array.param = param;
    array.size = static_cast<std::int64_t>(size);
    array.dtype = std::is_same_v<T, float> ? GRADSTEP_FLOAT32 : GRADSTEP_FLOAT64;
    std::vector<std::vector<T>> zeros(states_.size(), std::vector<T>(size));
    arrays_.reserve(arrays_.size() + 1);
    for (State& state : states_) state.arrays.reserve(arrays_.size() + 1);
    for (std::size_t i = 0; i < states_.size(); ++i) {
      array.states[i] = zeros[i].data();
      states_[i].arrays.push_back(std::move(zeros[i]));
    }
    arrays_.push_back(array);
    apart_ = false;
  }

  template <class Container>
  void add(Container& params) {
    add(params.data(), params.size());
  }

  /// Updates all parameters once, given a gradient for each, in their order.
  Result step(std::initializer_list<T*> grads, const Treatment& treatment = {}) {
    return step(grads.begin(), grads.size(), treatment);
  }
  Result step(const std::vector<T*>& grads, const Treatment& treatment = {}) {
    return step(grads.data(), grads.size(), treatment);
  }

  double get(const std::string& hyper) const { return values_[place_of(hyper)]; }
  void set(const std::string& hyper, double value) {
    std::vector<double> values = values_;
    values[place_of(hyper)] = value;
    check(values);
    values_.swap(values);
  }

  /// The steps taken so far. With it, the states and the parameters, a run can be resumed.
  std::int64_t t() const { return t_; }
  void set_t(std::int64_t t) { t_ = t; }

  /// A state of the i-th parameters, of their size.
  T* state(const std::string& name, std::size_t i) {
    for (State& state : states_)
      if (state.name == name) return state.arrays.at(i).data();
    fail(std::string(gradstep_rule_name(rule_)) + " has no state " + name);
  }

 private:
  struct State {
    std::string name;
    std::vector<std::vector<T>> arrays;
  };

  [[noreturn]] static void fail(const std::string& message) { throw error(GRADSTEP_INVALID, message); }

  static void check(gradstep_status status) {
    if (status != GRADSTEP_OK) throw error(status, gradstep_last_error());
  }

  void check(const std::vector<double>& values) const {
    const gradstep_scalars scalars = scalars_of(values, 1);
    check(gradstep_check(rule_, nullptr, 0, &scalars));
  }

  std::size_t place_of(const std::string& hyper) const {
    for (std::size_t i = 0; i < names_.size(); ++i)
      if (names_[i] == hyper) return i;
    fail(std::string(gradstep_rule_name(rule_)) + " has no hyper-parameter " + hyper);
  }

  gradstep_scalars scalars_of(const std::vector<double>& values, std::int64_t t) const {
    gradstep_scalars scalars = gradstep_scalars_of(t, values.data(), static_cast<std::int64_t>(values.size()));
    scalars.weight_decay = options_.weight_decay;
    scalars.maximize = options_.maximize;
    scalars.skip_nonfinite = options_.skip_nonfinite;
    scalars.flush_denormals = options_.flush_denormals;
    return scalars;
  }

  Result step(T* const* grads, std::size_t count, const Treatment& treatment) {
    if (count != arrays_.size())
      fail("grads must hold " + std::to_string(arrays_.size()) + " arrays, got " + std::to_string(count));
    gradstep_scalars scalars = scalars_of(values_, t_ + 1);
    scalars.grad_scale = treatment.grad_scale;
    scalars.clip_norm = treatment.clip_norm ? &*treatment.clip_norm : nullptr;
    scalars.clip_value = treatment.clip_value ? &*treatment.clip_value : nullptr;
    scalars.zero_grad = treatment.zero_grad;
    // Whether arrays overlap is asked when they are seen for the first time.
    apart_ = apart_ && (clears_ || !treatment.zero_grad);
    for (std::size_t i = 0; i < count; ++i) {
      apart_ = apart_ && arrays_[i].grad == grads[i];
      arrays_[i].grad = grads[i];
    }
    const auto size = static_cast<std::int64_t>(count);
    if (!apart_) check(gradstep_check(rule_, arrays_.data(), size, &scalars));
    apart_ = true;
    clears_ = treatment.zero_grad;
    gradstep_result result = GRADSTEP_RESULT;
    check(gradstep_step(rule_, arrays_.data(), size, &scalars, &result));
    if (!result.skipped) ++t_;
    return {result.grad_norm, result.clipped != 0, result.skipped != 0};
  }

  const gradstep_rule* rule_;
  std::vector<std::string> names_;  // of the hyper-parameters
  std::vector<double> values_;
  Options options_;
  std::vector<State> states_;
  std::vector<gradstep_array> arrays_;
  bool apart_ = false, clears_ = false;  // whether these arrays were found apart, and so for zero_grad
  std::int64_t t_ = 0;
};

}  // namespace gradstep
