// What a rule is.
//
// A rule is its equation. Its constructor folds the hyper-parameters and the step count t (from 1) into constants, in
// double, each cast to T once. Its call updates one element of the parameter `w` and of the states, given the
// gradient `g`. It knows no loop, no memory, no instruction set, no sign and mostly no weight decay: see loops.hpp.
//
// The order of the operations is part of the definition: python/gradstep/reference.py repeats it bit for bit.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../kernel.hpp"
#include "../math.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

// A rule that differs from another in little says so: its spec is the other's, under a name and with states of its own.
struct States {
  State states[max_states];
};

constexpr State never_negative(const char* name) { return {name, true}; }

constexpr Spec variant(Spec base, const char* name, States states) {
  base.name = name;
  for (int i = 0; i < max_states; ++i) base.states[i] = states.states[i];
  return base;
}

constexpr Spec with_hyper(Spec base, const char* name, Hyper last) {
  base.name = name;
  int count = 0;
  while (base.hyper[count].name) ++count;
  base.hyper[count] = last;
  return base;
}

// Where it differs in its spec and its constants alone, the loops of the other serve it: it says `using Loops = Other`.
template <class Rule, class = void>
struct LoopsOf {
  using type = Rule;
};
template <class Rule>
struct LoopsOf<Rule, std::void_t<typename Rule::Loops>> {
  using type = typename Rule::Loops;
};

constexpr Spec decoupled(Spec base, const char* name) {
  base.name = name;
  base.decay = Decay::decoupled;
  return base;
}

// `streams`: how many arrays are read and written in both passes.
constexpr Spec with_trust(Spec base, int streams) {
  base.decay = Decay::in_rule;
  base.has_trust = true;
  base.streams = streams;
  return base;
}

constexpr Spec factored(Spec base, int row_factor) {
  base.row_factor = row_factor;
  return base;
}

// A family ends with the list of its rules, and rules.hpp joins the lists.
template <template <class> class... Rules>
struct List {
  static constexpr int size = sizeof...(Rules);
};

template <template <class> class... A, template <class> class... B>
List<A..., B...> operator+(List<A...>, List<B...>);

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
