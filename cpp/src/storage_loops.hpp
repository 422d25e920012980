// The loops of a rule over low-precision storage, for the layouts that memory gains most by. All others go through
// float32 in chunks (stored.cpp), and to the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "folded.hpp"
#include "storage.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

// bfloat16 states of float32 parameters, element by element.
template <bool idle, class Rule, std::size_t... I>
GRADSTEP_INLINE void loop_in_place(const Folded<Rule, float> folded, const Buffers& buffers, std::int64_t begin,
                                   std::int64_t size, const std::uint16_t* const (&chances)[sizeof...(I)],
                                   std::index_sequence<I...>) {
  float* const w = static_cast<float*>(buffers.param) + begin;
  const float* const g = static_cast<const float*>(buffers.grad) + begin;
  std::uint16_t* const states[] = {static_cast<std::uint16_t*>(buffers.states[I]) + begin...};
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) {
    const auto update = [&](auto... numbers) {
      float value = w[i];
      const float gradient = folded.prelude.template apply<idle ? Before::nothing : Before::all>(value, g[i]);
      folded.rule(value, gradient, numbers...);
      w[i] = value;
      ((states[I][i] = BFloat16::stochastic(numbers, chances[I][i])), ...);
    };
    update(BFloat16::load(states[I][i])...);
  }
}

// Where all is bfloat16, two elements at once: a word of 32 bits has both, and nothing has to change its lane.
template <bool idle, class Rule, std::size_t... I>
GRADSTEP_INLINE void loop_over_pairs(const Folded<Rule, float> folded, const Buffers& buffers, std::int64_t begin,
                                     std::int64_t size, const std::uint16_t* chances, std::index_sequence<I...>) {
  const auto at = [=](void* memory) { return static_cast<std::uint16_t*>(memory) + begin; };
  std::uint16_t *const w = at(buffers.param), *const g = at(buffers.grad);
  [[maybe_unused]] std::uint16_t* const states[] = {at(buffers.states[I])..., nullptr};
#pragma omp simd
  for (std::int64_t i = 0; i < size / 2; ++i) {
    const auto element = [&](float& value, float g, auto&... numbers) {
      const float gradient = folded.prelude.template apply<idle ? Before::nothing : Before::all>(value, g);
      folded.rule(value, gradient, numbers...);
    };
    const auto update = [&](Pair w_pair, Pair g_pair, auto... pairs) {
      element(w_pair.first, g_pair.first, pairs.first...);
      element(w_pair.second, g_pair.second, pairs.second...);
      store_pair(w + 2 * i, w_pair, own_chance[0] * pair_at(chances, i));
      (store_pair(states[I] + 2 * i, pairs, own_chance[1 + I] * pair_at(chances, i)), ...);
    };
    update(load_pair(w + 2 * i), load_pair(g + 2 * i), load_pair(states[I] + 2 * i)...);
  }
}

// Of an even number of elements.
template <bool idle, class Rule>
GRADSTEP_LOOP void bfloat16_loop(const Constants& constants, const Buffers& buffers, std::int64_t begin,
                                 std::int64_t size, const std::uint16_t* chances) noexcept {
  loop_over_pairs<idle, Rule>(unfold<Rule, float>(constants), buffers, begin, size, chances,
                              std::make_index_sequence<state_count<Rule>()>());
}

template <class Rule>
void sweep_bfloat16(const Constants& constants, const Buffers& buffers, std::int64_t begin, std::int64_t size,
                    const std::uint16_t* chances) noexcept {
  const auto loop =
      unfold<Rule, float>(constants).prelude.idle ? bfloat16_loop<true, Rule> : bfloat16_loop<false, Rule>;
  loop(constants, buffers, begin, size, chances);
}

template <bool idle, class Rule>
GRADSTEP_LOOP void bfloat16_states_loop(const Constants& constants, const Buffers& buffers, std::int64_t begin,
                                        std::int64_t size, const std::uint16_t* chances) noexcept {
  constexpr auto states = std::make_index_sequence<state_count<Rule>()>();
  alignas(64) std::uint16_t own[states.size()][stored_piece];
  const std::uint16_t* halves[states.size()];
  for (std::size_t k = 0; k < states.size(); ++k) halves[k] = halves_of(chances, size, own_chance[1 + k], own[k]);
  loop_in_place<idle, Rule>(unfold<Rule, float>(constants), buffers, begin, size, halves, states);
}

template <class Rule>
void sweep_bfloat16_states(const Constants& constants, const Buffers& buffers, std::int64_t begin, std::int64_t size,
                           const std::uint16_t* chances) noexcept {
  const auto loop = unfold<Rule, float>(constants).prelude.idle ? bfloat16_states_loop<true, Rule>
                                                                : bfloat16_states_loop<false, Rule>;
  loop(constants, buffers, begin, size, chances);
}

template <class Rule, std::size_t I>
constexpr bool has_sign = !Rule::spec.states[I].never_negative;

// A block is read in one of the loops that it goes through, and the processor would wait for memory there and let it
// rest in the others. So it is asked evenly, for what lies so many elements ahead.
constexpr int ahead = 512;

// So many as the widest registers have of what is held: with fewer, bfloat16 would go through narrower ones.
template <class Held>
constexpr int words_at_once = 64 / sizeof(Held);

GRADSTEP_INLINE float number_at(const float* memory, int i) { return memory[i]; }
GRADSTEP_INLINE float number_at(const std::uint16_t* memory, int i) { return BFloat16::load(memory[i]); }
GRADSTEP_INLINE void round_to(float* memory, int i, float x, const std::uint16_t*) { memory[i] = x; }
GRADSTEP_INLINE void round_to(std::uint16_t* memory, int i, float x, const std::uint16_t* halves) {
  memory[i] = BFloat16::stochastic(x, halves[i]);
}

// Where states are in 8 bits, the numbers of some words of a block: four of each state. They stay in `numbers`, and
// their largest sizes in `largest`, until the whole block can be put back.
template <bool idle, class Rule, class Held, std::size_t... I>
GRADSTEP_INLINE void loop_over_words(const Folded<Rule, float>& folded, Held* w, const Held* g,
                                     const unsigned char* const (&codes)[sizeof...(I)],
                                     const float (&scales)[sizeof...(I)], const std::uint16_t* halves,
                                     float (&numbers)[sizeof...(I)][state_block],
                                     std::uint32_t (&largest)[sizeof...(I)][quarter], int begin,
                                     std::index_sequence<I...>) {
#pragma omp simd
  for (int i = begin; i < begin + words_at_once<Held>; ++i) {
    const auto element = [&](int j, auto... states) {
      float value = number_at(w, j);
      const float gradient =
          folded.prelude.template apply<idle ? Before::nothing : Before::all>(value, number_at(g, j));
      folded.rule(value, gradient, states...);
      round_to(w, j, value, halves);
      ((numbers[I][j] = states), ...);
    };
    const auto update = [&](auto... words) {
      element(i, number_of<has_sign<Rule, I>, true, 0>(words, scales[I])...);
      element(i + quarter, number_of<has_sign<Rule, I>, true, 1>(words, scales[I])...);
      element(i + 2 * quarter, number_of<has_sign<Rule, I>, true, 2>(words, scales[I])...);
      element(i + 3 * quarter, number_of<has_sign<Rule, I>, true, 3>(words, scales[I])...);
    };
    update(word_at(codes[I], i)...);
    ((largest[I][i] = largest_of_word<true>(numbers[I] + i)), ...);
  }
}

template <bool idle, class Rule, class Held, std::size_t... I>
GRADSTEP_INLINE void loop_over_blocks(const Folded<Rule, float> folded, const Buffers& buffers, std::int64_t begin,
                                      std::int64_t size, const std::uint16_t* chances,
                                      std::index_sequence<I...> states) {
  alignas(64) float numbers[sizeof...(I)][state_block];
  alignas(64) std::uint32_t largest[sizeof...(I)][quarter];
  alignas(64) std::uint16_t own[state_block];
  Held* w = static_cast<Held*>(buffers.param) + begin;
  const Held* g = static_cast<const Held*>(buffers.grad) + begin;
  const std::int64_t bytes = begin / state_block * held_block;
  unsigned char* held[] = {static_cast<unsigned char*>(buffers.states[I]) + bytes...};
  for (; size > 0; size -= state_block, w += state_block, g += state_block) {
    const unsigned char* const codes[] = {held[I] + 1 ...};
    const float scales[] = {scale_of<has_sign<Rule, I>>(*held[I])...};
    const std::uint16_t* halves = nullptr;
    if constexpr (sizeof(Held) == 2) halves = halves_of(chances, state_block, own_chance[0], own);
    for (int i = 0; i < quarter; i += words_at_once<Held>) {
      prefetch(w + 4 * i + ahead, 4 * words_at_once<Held> * sizeof *w);
      prefetch(g + 4 * i + ahead, 4 * words_at_once<Held> * sizeof *g);
      (prefetch(codes[I] + 4 * i + ahead, 4 * words_at_once<Held>), ...);
      loop_over_words<idle, Rule>(folded, w, g, codes, scales, halves, numbers, largest, i, states);
    }
    (store_numbers<has_sign<Rule, I>>(numbers[I], held[I], largest_of_all(largest[I]), chances,
                                      1 + static_cast<int>(I)),
     ...);
    ((held[I] += held_block), ...);
    if (chances) chances += state_block;
  }
}

// Of whole blocks, in which all numbers are finite. `Held`: how memory holds the parameter and the gradient.
template <bool idle, class Rule, class Held>
GRADSTEP_LOOP void block_loop(const Constants& constants, const Buffers& buffers, std::int64_t begin, std::int64_t size,
                              const std::uint16_t* chances) noexcept {
  loop_over_blocks<idle, Rule, Held>(unfold<Rule, float>(constants), buffers, begin, size, chances,
                                     std::make_index_sequence<state_count<Rule>()>());
}

template <class Rule, class Held>
void sweep_8_bit_states(const Constants& constants, const Buffers& buffers, std::int64_t begin, std::int64_t size,
                        const std::uint16_t* chances) noexcept {
  const auto loop =
      unfold<Rule, float>(constants).prelude.idle ? block_loop<true, Rule, Held> : block_loop<false, Rule, Held>;
  loop(constants, buffers, begin, size, chances);
}

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
