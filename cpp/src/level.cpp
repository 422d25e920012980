// The rules compiled for one instruction set. CMake compiles this file once per level, with GRADSTEP_LEVEL naming it
// (baseline, x86_64_v3, x86_64_v4) and with that level's flags. It exports one name, the level's table.

#include "compiler.hpp"
#include "factored.hpp"
#include "folded.hpp"
#include "rows.hpp"
#include "rules.hpp"
#include "squares.hpp"
#include "storage.hpp"

#include <cfloat>
#include <cstddef>
#include <limits>
#include <utility>

// The oracle's arithmetic. An x87 that keeps more bits than a type has, or a type that is not IEEE's, has other
// results.
static_assert(FLT_EVAL_METHOD == 0 && std::numeric_limits<double>::is_iec559, "float and double must be IEEE's");

namespace gradstep::GRADSTEP_LEVEL {
namespace {

// A state as its rule gets it: to be written to, or, where it is a gradient, multiplied as the first one is.
template <class Rule, std::size_t I, class T>
GRADSTEP_INLINE decltype(auto) argument(const Prelude<T>& prelude, T& state) {
  if constexpr (I + Rule::spec.gradients >= state_count<Rule>())
    return Rule::spec.as_it_is ? state : prelude.scaled(state);
  else
    return (state);
}

// A rule's scalars as a copy, not a reference, so that the stores of a loop cannot alias them.
template <class Rule, class T>
GRADSTEP_INLINE Folded<Rule, T> unfolded(const Constants& constants, const Buffers& buffers) {
  Folded<Rule, T> folded = unfold<Rule, T>(constants);
  if constexpr (Rule::spec.has_trust) folded.rule.rely(buffers.trust);
  return folded;
}

// The only loop. `omp simd` states what the bindings have checked: no two buffers overlap.
template <bool idle, bool zero_grad, bool fresh_row, class Rule, class T, std::size_t... I>
GRADSTEP_INLINE void loop(const Folded<Rule, T> folded, const Buffers& buffers, std::int64_t begin, std::int64_t end,
                          std::index_sequence<I...>) {
  T* const w = static_cast<T*>(buffers.param);
  T* const g = static_cast<T*>(buffers.grad);
  [[maybe_unused]] T* const states[] = {static_cast<T*>(buffers.states[I])..., nullptr};
#pragma omp simd
  for (std::int64_t i = begin; i < end; ++i) {
    T value = w[i];
    const T gradient = folded.prelude.template apply<idle>(value, g[i]);
    if constexpr (fresh_row) states[Rule::spec.row_state][i] = 0;
    folded.rule(value, gradient, argument<Rule, I>(folded.prelude, states[I][i])...);
    w[i] = value;
    if constexpr (zero_grad) g[i] = 0;
  }
}

// The loops for the storages that memory gains most by. Other ones go through float32 (stored.cpp), and to the same
// bits. Beside parameters in float32, element by element:
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
      const float gradient = folded.prelude.template apply<idle>(value, g[i]);
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
      const float gradient = folded.prelude.template apply<idle>(value, g);
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

// Each loop is in a function of its own, `..._loop`, that a test of the machine code and a profiler can tell from the
// others. Of an even number of elements.
template <bool idle, class Rule>
GRADSTEP_NOINLINE void bfloat16_loop(const Constants& constants, const Buffers& buffers, std::int64_t begin,
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
GRADSTEP_NOINLINE void bfloat16_states_loop(const Constants& constants, const Buffers& buffers, std::int64_t begin,
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
      const float gradient = folded.prelude.template apply<idle>(value, number_at(g, j));
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
GRADSTEP_NOINLINE void block_loop(const Constants& constants, const Buffers& buffers, std::int64_t begin,
                                  std::int64_t size, const std::uint16_t* chances) noexcept {
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

template <bool idle, bool zero_grad, bool fresh_row, class Rule, class T>
GRADSTEP_NOINLINE void plain_loop(const Constants& constants, const Buffers& buffers, std::int64_t begin,
                                  std::int64_t end) noexcept {
  loop<idle, zero_grad, fresh_row, Rule, T>(unfolded<Rule, T>(constants, buffers), buffers, begin, end,
                                            std::make_index_sequence<elementwise_count<Rule>()>());
}

template <bool zero_grad, class Rule, class T>
GRADSTEP_NOINLINE void matrix_loop(const Constants& constants, const Buffers& buffers, std::int64_t begin,
                                   std::int64_t end) noexcept {
  factored_loop<zero_grad, Rule, T>(unfolded<Rule, T>(constants, buffers), buffers, begin, end);
}

template <class Rule, class T>
void sweep(const Constants& constants, const Buffers& buffers, std::int64_t begin, std::int64_t end) noexcept {
  const Folded<Rule, T>& folded = unfold<Rule, T>(constants);
  auto loop = folded.zero_grad      ? plain_loop<false, true, false, Rule, T>
              : folded.prelude.idle ? plain_loop<true, false, false, Rule, T>
                                    : plain_loop<false, false, false, Rule, T>;
  if constexpr (Rule::spec.row_factor >= 0)
    if (buffers.matrices.columns > 0)
      loop = folded.zero_grad ? matrix_loop<true, Rule, T> : matrix_loop<false, Rule, T>;
  if constexpr (Rule::spec.row_state >= 0)
    if (folded.fresh_row)
      loop = folded.zero_grad ? plain_loop<false, true, true, Rule, T> : plain_loop<false, false, true, Rule, T>;
  loop(constants, buffers, begin, end);
}

template <bool plain, class T>
GRADSTEP_NOINLINE double squares_loop(const void* grads, std::int64_t size, double scale, double range) noexcept {
  double lanes[lane_count] = {};
  add_squares<plain>(lanes, static_cast<const T*>(grads), size, T(scale), range);
  return sum_of_lanes(lanes);
}

template <class T>
double sum_of_squares(const void* grads, std::int64_t size, double scale, double range) noexcept {
  return (scale == 1 && range == 1 ? squares_loop<true, T> : squares_loop<false, T>)(grads, size, scale, range);
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
GRADSTEP_NOINLINE Squares measure_loop(const Constants& constants, const Buffers& buffers, std::int64_t begin,
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

// More rows than one, because the memory is faster where it is read at several places.
template <class T, std::size_t... K>
GRADSTEP_INLINE void add_each(double* sums, const void* const* rows, const double* weights, std::int64_t size,
                              std::index_sequence<K...>) {
  const T* const y[] = {static_cast<const T*>(rows[K])...};
  const double r[] = {weights[K]...};
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) {
    double sum = sums[i];
    ((sum += r[K] * double(y[K][i])), ...);
    sums[i] = sum;
  }
}

template <class T>
GRADSTEP_NOINLINE void add_rows(double* sums, const void* const* rows, const double* weights, int count,
                                std::int64_t size) noexcept {
  if (count == rows_at_once) return add_each<T>(sums, rows, weights, size, std::make_index_sequence<rows_at_once>());
  for (int k = 0; k < count; ++k) add_each<T>(sums, rows + k, weights + k, size, std::make_index_sequence<1>());
}

// What a rule reads and writes, with next to no arithmetic: how fast the memory lets it be. The values go round, so
// that every load counts.
template <class T, std::size_t... I>
void streams(const Constants&, const Buffers& buffers, std::int64_t begin, std::int64_t end) noexcept {
  T* const w = static_cast<T*>(buffers.param);
  const T* const g = static_cast<const T*>(buffers.grad);
  [[maybe_unused]] T* const states[] = {static_cast<T*>(buffers.states[I])..., nullptr};
#pragma omp simd
  for (std::int64_t i = begin; i < end; ++i) {
    T carry = w[i] + g[i];
    [[maybe_unused]] const auto exchange = [&](T& value) {
      const T before = value;
      value = carry;
      carry = before;
    };
    (exchange(states[I][i]), ...);
    w[i] = carry;
  }
}

template <class T, std::size_t... I>
constexpr Kernel streams_kernel(std::index_sequence<I...>) {
  return {nullptr, streams<T, I...>};
}

template <class Rule, class T>
constexpr Kernel kernel() {
  if constexpr (Rule::spec.row_factor >= 0)
    return {fold<Rule, T>, sweep<Rule, T>, measure<Rule, T>, trust<Rule, T>, sum_tile<Rule, T>, take_factors<Rule, T>};
  else if constexpr (Rule::spec.has_trust)
    return {fold<Rule, T>, sweep<Rule, T>, measure<Rule, T>, trust<Rule, T>};
  else {
    Kernel kernel{fold<Rule, T>, sweep<Rule, T>};
    if constexpr (std::is_same_v<T, float> && takes_any_storage(Rule::spec)) {
      kernel.sweep_bfloat16 = sweep_bfloat16<Rule>;
      if constexpr (state_count<Rule>() > 0) {
        kernel.sweep_bfloat16_states = sweep_bfloat16_states<Rule>;
        kernel.sweep_8_bit_states = sweep_8_bit_states<Rule, float>;
        kernel.sweep_bfloat16_8_bit_states = sweep_8_bit_states<Rule, std::uint16_t>;
      }
    }
    return kernel;
  }
}

template <template <class> class... Rules, std::size_t... N>
const Table& table_of(List<Rules...>, std::index_sequence<N...>) {
  static constexpr Entry entries[] = {
      {Rules<float>::spec, kernel<Rules<float>, float>(), kernel<Rules<double>, double>()}...};
  static constexpr Table table{
      entries,
      sizeof...(Rules),
      sum_of_squares<float>,
      sum_of_squares<double>,
      add_rows<float>,
      add_rows<double>,
      float32_converters,
      float64_converters,
      draw,
      join,
      split,
      {streams_kernel<float>(std::make_index_sequence<N>())...},
      {dense_kernels<float>(), sparse_kernels<float, std::int32_t>(), sparse_kernels<float, std::int64_t>()},
      {dense_kernels<double>(), sparse_kernels<double, std::int32_t>(), sparse_kernels<double, std::int64_t>()}};
  return table;
}

}  // namespace

const Table& table() { return table_of(AllRules(), std::make_index_sequence<max_states + 1>()); }

}  // namespace gradstep::GRADSTEP_LEVEL
