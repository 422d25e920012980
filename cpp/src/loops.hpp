// The loops of a rule, and the kernels that they make. A family of rules is a translation unit (rules/*.cpp), compiled
// once per instruction set.
//
// Each loop is in a function of its own, `..._loop`, that a test of the machine code and a profiler can tell from the
// others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "factored.hpp"
#include "folded.hpp"
#include "rules.hpp"
#include "squares.hpp"
#include "storage_loops.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

// The last states of some rules are gradients.
template <class Rule, std::size_t I>
constexpr bool is_gradient = I + Rule::spec.gradients >= state_count<Rule>();

// A state as its rule gets it: where it is a gradient, multiplied as the first one is; 0 in a row that is new.
template <class Rule, std::size_t I, bool fresh_row, class T>
GRADSTEP_INLINE T state_at(const Prelude<T>& prelude, const T& state) {
  if constexpr (fresh_row && static_cast<int>(I) == Rule::spec.row_state)
    return 0;
  else
    return is_gradient<Rule, I> && !Rule::spec.as_it_is ? prelude.scaled(state) : state;
}

// A rule's scalars as a copy, not a reference, so that the stores of a loop cannot alias them.
template <class Rule, class T>
GRADSTEP_INLINE Folded<Rule, T> unfolded(const Constants& constants, const Buffers& buffers) {
  Folded<Rule, T> folded = unfold<Rule, T>(constants);
  if constexpr (Rule::spec.has_trust) folded.rule.rely(buffers.trust);
  return folded;
}

// The only loop. `omp simd` states what the bindings have checked: no two buffers overlap.
template <Before before, bool zero_grad, bool fresh_row, class Rule, class T, std::size_t... I>
GRADSTEP_INLINE void loop(const Folded<Rule, T> folded, const Buffers& buffers, std::int64_t begin, std::int64_t end,
                          std::index_sequence<I...>) {
  T* const w = static_cast<T*>(buffers.param);
  T* const g = static_cast<T*>(buffers.grad);
  [[maybe_unused]] T* const states[] = {static_cast<T*>(buffers.states[I])..., nullptr};
#pragma omp simd
  for (std::int64_t i = begin; i < end; ++i) {
    // Of copies, all of which are put back: a rule that selects would have some loads and stores masked.
    const auto update = [&](auto... numbers) {
      T value = w[i];
      const T gradient = folded.prelude.template apply<before>(value, g[i]);
      folded.rule(value, gradient, numbers...);
      w[i] = value;
      if constexpr (zero_grad) g[i] = 0;
      ((is_gradient<Rule, I> ? void() : void(states[I][i] = numbers)), ...);
    };
    update(state_at<Rule, I, fresh_row>(folded.prelude, states[I][i])...);
  }
}

template <Before before, bool zero_grad, bool fresh_row, class Rule, class T>
GRADSTEP_LOOP void plain_loop(const Constants& constants, const Buffers& buffers, std::int64_t begin,
                              std::int64_t end) noexcept {
  loop<before, zero_grad, fresh_row, Rule, T>(unfolded<Rule, T>(constants, buffers), buffers, begin, end,
                                              std::make_index_sequence<elementwise_count<Rule>()>());
}

template <bool zero_grad, class Rule, class T>
GRADSTEP_LOOP void matrix_loop(const Constants& constants, const Buffers& buffers, std::int64_t begin,
                               std::int64_t end) noexcept {
  factored_loop<zero_grad, Rule, T>(unfolded<Rule, T>(constants, buffers), buffers, begin, end);
}

template <class Rule, class T>
void sweep(const Constants& constants, const Buffers& buffers, std::int64_t begin, std::int64_t end) noexcept {
  const Folded<Rule, T>& folded = unfold<Rule, T>(constants);
  auto loop = folded.prelude.couples ? plain_loop<Before::coupled, false, false, Rule, T>
              : folded.prelude.idle  ? plain_loop<Before::nothing, false, false, Rule, T>
                                     : plain_loop<Before::uncoupled, false, false, Rule, T>;
  if (folded.zero_grad)
    loop = folded.prelude.couples ? plain_loop<Before::coupled, true, false, Rule, T>
                                  : plain_loop<Before::uncoupled, true, false, Rule, T>;
  if constexpr (Rule::spec.row_factor >= 0)
    if (buffers.matrices.columns > 0)
      loop = folded.zero_grad ? matrix_loop<true, Rule, T> : matrix_loop<false, Rule, T>;
  if constexpr (Rule::spec.row_state >= 0)
    if (folded.fresh_row)
      loop = folded.zero_grad ? plain_loop<Before::all, true, true, Rule, T>
                              : plain_loop<Before::all, false, true, Rule, T>;
  loop(constants, buffers, begin, end);
}

template <class Rule, class T, std::size_t... I>
GRADSTEP_INLINE void directions(const Folded<Rule, T> folded, const Buffers& buffers, std::int64_t begin,
                                std::int64_t end, T* direction, std::index_sequence<I...>) {
  const T* const w = static_cast<const T*>(buffers.param);
  const T* const g = static_cast<const T*>(buffers.grad);
  T* const states[] = {static_cast<T*>(buffers.states[I])...};
#pragma omp simd
  for (std::int64_t i = begin; i < end; ++i) {
    T value = w[i];
    const T gradient = folded.prelude(value, g[i]);
    direction[i - begin] = folded.rule.direction(value, gradient, states[I][i]...);
  }
}

// The first pass of a rule with trust ratios. A piece of the direction stays in the cache until its squares are summed.
template <bool is_factored, class Rule, class T>
GRADSTEP_LOOP Squares measure_loop(const Constants& constants, const Buffers& buffers, std::int64_t begin,
                                   std::int64_t end) noexcept {
  const Folded<Rule, T> folded = unfold<Rule, T>(constants);
  constexpr std::int64_t piece = 512;
  static_assert(piece % lane_count == 0, "each piece begins at the first lane");
  T direction[piece];
  double of_param[lane_count] = {}, of_direction[lane_count] = {};
  for (; begin < end; begin += piece) {
    const std::int64_t size = end - begin < piece ? end - begin : piece;
    if constexpr (is_factored)
      factored_directions<Rule, T>(folded, buffers, begin, begin + size, direction);
    else
      directions<Rule, T>(folded, buffers, begin, begin + size, direction,
                          std::make_index_sequence<elementwise_count<Rule>()>());
    add_squares<true>(of_param, static_cast<const T*>(buffers.param) + begin, size, T(1), 1);
    add_squares<true>(of_direction, direction, size, T(1), 1);
  }
  return {sum_of_lanes(of_param), sum_of_lanes(of_direction)};
}

template <class Rule, class T>
Squares measure(const Constants& constants, const Buffers& buffers, std::int64_t begin, std::int64_t end) noexcept {
  if constexpr (Rule::spec.row_factor >= 0)
    if (buffers.matrices.columns > 0) return measure_loop<true, Rule, T>(constants, buffers, begin, end);
  return measure_loop<false, Rule, T>(constants, buffers, begin, end);
}

template <class Rule, class T>
double trust(const Constants& constants, double param_norm, double direction_norm, std::int64_t size) noexcept {
  return unfold<Rule, T>(constants).rule.trust(param_norm, direction_norm, size);
}

template <class Rule, class T>
constexpr Kernel kernel() {
  using Loops = typename LoopsOf<Rule>::type;
  Kernel kernel{fold<Rule, T>, sweep<Loops, T>};
  if constexpr (Rule::spec.has_trust) {
    kernel.measure = measure<Loops, T>;
    kernel.trust = trust<Loops, T>;
  }
  if constexpr (Rule::spec.row_factor >= 0) {
    kernel.sum_tile = sum_tile<Loops, T>;
    kernel.take_factors = take_factors<Loops, T>;
  }
#ifdef GRADSTEP_STORAGE_LOOPS
  if constexpr (std::is_same_v<T, float> && takes_any_storage(Rule::spec)) {
    kernel.sweep_bfloat16 = sweep_bfloat16<Loops>;
    if constexpr (state_count<Rule>() > 0) {
      kernel.sweep_bfloat16_states = sweep_bfloat16_states<Loops>;
      kernel.sweep_8_bit_states = sweep_8_bit_states<Loops, float>;
      kernel.sweep_bfloat16_8_bit_states = sweep_8_bit_states<Loops, std::uint16_t>;
    }
  }
#endif
  return kernel;
}

template <template <class> class... Rules>
constexpr Entries<sizeof...(Rules)> entries_of(List<Rules...>) {
  return {{{Rules<float>::spec, kernel<Rules<float>, float>(), kernel<Rules<double>, double>()}...}};
}

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
