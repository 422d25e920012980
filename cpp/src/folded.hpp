// A rule whose scalars have been folded into the constants of one step, with what happens to a gradient before it.
#pragma once

#include <cstddef>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>

#include "compiler.hpp"
#include "kernel.hpp"
#include "math.hpp"
#include "rules/rule.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

// What of the below a loop has: nothing, as in most steps; all but coupled weight decay; all with it; or all where it
// depends on `couples`, which costs a select.
enum class Before { nothing, uncoupled, coupled, all };

// What every gradient goes through before its rule: scale and sign, clipping, then weight decay. Multiplications by 1
// are exact, but w * 0 is not 0 where w is NaN or infinite, so coupled decay is skipped rather than multiplied by 0.
template <class T>
struct Prelude {
  T scale, clip, clip_value, coupled, shrink;
  Flag<T> couples;
  bool idle;  // whether there is nothing to do: nothing would change a number
  static constexpr T largest = std::numeric_limits<T>::max();

  Prelude(const Step& step, Decay decay)
      : scale(T(step.maximize ? -step.grad_scale : step.grad_scale)),
        clip(T(step.clip)),
        clip_value(T(step.clip_value)),
        coupled(T(step.weight_decay)),
        shrink(decay == Decay::decoupled ? T(1 - step.hyper[0] * step.weight_decay) : T(1)),
        couples(decay == Decay::coupled && step.weight_decay != 0),
        idle(!step.flushes && scale == 1 && clip == 1 && clip_value > largest && shrink == 1 && !couples) {}

  T scaled(T g) const { return clip * (scale * g); }

  template <Before before>
  T apply(T& w, T g) const {
    if constexpr (before == Before::nothing) return g;
    w = shrink * w;
    g = clipped(scaled(g), clip_value);
    if constexpr (before == Before::uncoupled) return g;
    return before == Before::coupled || couples ? g + coupled * w : g;
  }

  T operator()(T& w, T g) const { return apply<Before::all>(w, g); }
};

// `Rule`: the one whose loops run.
template <class Rule, class T>
struct Folded {
  Prelude<T> prelude;
  Rule rule;
  bool zero_grad, fresh_row;
};

template <class Rule>
constexpr int hyper_count() {
  int n = 0;
  while (n < max_hyper && Rule::spec.hyper[n].name) ++n;
  return n;
}

template <class Rule>
constexpr std::size_t state_count() {
  std::size_t n = 0;
  while (n < max_states && Rule::spec.states[n].name) ++n;
  return n;
}

// The states that have an element per parameter. Factors come after them.
template <class Rule>
constexpr std::size_t elementwise_count() {
  return Rule::spec.row_factor < 0 ? state_count<Rule>() : static_cast<std::size_t>(Rule::spec.row_factor);
}

template <class Rule>
Rule make(const typename Rule::Hyper& hyper, const Step& step) {
  if constexpr (Rule::spec.decay == Decay::in_rule)
    return Rule(hyper, step.t, step.weight_decay);
  else
    return Rule(hyper, step.t);
}

template <class Rule, class T>
void fold(const Step& step, Constants& constants) noexcept {
  using Hyper = typename Rule::Hyper;
  static_assert(!Rule::spec.has_trust || Rule::spec.decay == Decay::in_rule, "a norm is that of the whole direction");
  static_assert(sizeof(Hyper) == hyper_count<Rule>() * sizeof(double), "Hyper and spec.hyper name the same doubles");
  using Result = Folded<typename LoopsOf<Rule>::type, T>;
  static_assert(sizeof(Result) <= sizeof(Constants::bytes), "Constants is too small for this rule");
  static_assert(alignof(Result) <= alignof(Constants), "Constants is not aligned for this rule");
  static_assert(std::is_trivially_destructible_v<Result>, "nobody destroys what fold() makes");
  static_assert(sizeof(Rule) == sizeof(typename LoopsOf<Rule>::type), "the loops would not see all constants");
  Hyper hyper;
  std::memcpy(&hyper, step.hyper, sizeof hyper);
  new (constants.bytes)
      Result{Prelude<T>(step, Rule::spec.decay), make<Rule>(hyper, step), step.zero_grad, step.fresh_row};
}

template <class Rule, class T>
GRADSTEP_INLINE const Folded<Rule, T>& unfold(const Constants& constants) {
  return *std::launder(reinterpret_cast<const Folded<Rule, T>*>(constants.bytes));
}

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
