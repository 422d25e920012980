// The rules compiled for one instruction set. CMake compiles this file once per level, with GRADSTEP_LEVEL naming it
// (baseline, x86_64_v3, x86_64_v4) and with that level's flags. It exports one name, the level's table.

#include "compiler.hpp"
#include "rows.hpp"
#include "rules.hpp"

#include <cfloat>
#include <cstddef>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

// The oracle's arithmetic. An x87 that keeps more bits than a type has, or a type that is not IEEE's, has other
// results.
static_assert(FLT_EVAL_METHOD == 0 && std::numeric_limits<double>::is_iec559, "float and double must be IEEE's");

namespace gradstep::GRADSTEP_LEVEL {
namespace {

// What every gradient goes through before its rule: scale and sign, clipping, then weight decay. Multiplications by 1
// are exact, but w * 0 is not 0 where w is NaN or infinite, so coupled decay is skipped rather than multiplied by 0.
template <class T>
struct Prelude {
  T scale, clip, clip_value, coupled, shrink;
  T couples;  // 0 or 1: a large loop is not vectorised where it selects by a bool

  Prelude(const Step& step, Decay decay)
      : scale(T(step.maximize ? -step.grad_scale : step.grad_scale)),
        clip(T(step.clip)),
        clip_value(T(step.clip_value)),
        coupled(T(step.weight_decay)),
        shrink(decay == Decay::decoupled ? T(1 - step.hyper[0] * step.weight_decay) : T(1)),
        couples(T(decay == Decay::coupled && step.weight_decay != 0)) {}

  T scaled(T g) const { return clip * (scale * g); }

  T operator()(T& w, T g) const {
    w = shrink * w;
    g = clipped(scaled(g), clip_value);
    return couples != 0 ? g + coupled * w : g;
  }
};

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
  while (n < max_states && Rule::spec.states[n]) ++n;
  return n;
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
  static_assert(sizeof(Folded<Rule, T>) <= sizeof(Constants::bytes), "Constants is too small for this rule");
  static_assert(alignof(Folded<Rule, T>) <= alignof(Constants), "Constants is not aligned for this rule");
  static_assert(std::is_trivially_destructible_v<Folded<Rule, T>>, "nobody destroys what fold() makes");
  Hyper hyper;
  std::memcpy(&hyper, step.hyper, sizeof hyper);
  new (constants.bytes)
      Folded<Rule, T>{Prelude<T>(step, Rule::spec.decay), make<Rule>(hyper, step), step.zero_grad, step.fresh_row};
}

template <class Rule, class T>
GRADSTEP_INLINE const Folded<Rule, T>& unfold(const Constants& constants) {
  return *std::launder(reinterpret_cast<const Folded<Rule, T>*>(constants.bytes));
}

// A state as its rule gets it: to be written to, or, where it is a gradient, multiplied as the first one is.
template <class Rule, std::size_t I, class T>
GRADSTEP_INLINE decltype(auto) argument(const Prelude<T>& prelude, T& state) {
  if constexpr (I + Rule::spec.gradients >= state_count<Rule>())
    return Rule::spec.as_it_is ? state : prelude.scaled(state);
  else
    return (state);
}

// The only loop. The rule is a copy, not a reference, so that the stores cannot alias its constants. `omp simd` states
// what the bindings have checked: no two buffers overlap. It is inlined, so that each rule, type and level has one
// function, sweep, that a test of the machine code can find.
template <bool zero_grad, bool fresh_row, class Rule, class T, std::size_t... I>
GRADSTEP_INLINE void loop(const Folded<Rule, T> folded, const Buffers& buffers, std::int64_t begin, std::int64_t end,
                          std::index_sequence<I...>) {
  T* const w = static_cast<T*>(buffers.param);
  T* const g = static_cast<T*>(buffers.grad);
  [[maybe_unused]] T* const states[] = {static_cast<T*>(buffers.states[I])..., nullptr};
#pragma omp simd
  for (std::int64_t i = begin; i < end; ++i) {
    T value = w[i];
    const T gradient = folded.prelude(value, g[i]);
    if constexpr (fresh_row) states[Rule::spec.row_state][i] = 0;
    folded.rule(value, gradient, argument<Rule, I>(folded.prelude, states[I][i])...);
    w[i] = value;
    if constexpr (zero_grad) g[i] = 0;
  }
}

template <class Rule, class T>
GRADSTEP_NOINLINE void sweep(const Constants& constants, const Buffers& buffers, std::int64_t begin,
                             std::int64_t end) noexcept {
  Folded<Rule, T> folded = unfold<Rule, T>(constants);
  if constexpr (Rule::spec.has_trust) folded.rule.rely(buffers.trust);
  constexpr auto states = std::make_index_sequence<state_count<Rule>()>();
  if constexpr (Rule::spec.row_state >= 0) {
    if (folded.fresh_row) {
      if (folded.zero_grad)
        loop<true, true, Rule, T>(folded, buffers, begin, end, states);
      else
        loop<false, true, Rule, T>(folded, buffers, begin, end, states);
      return;
    }
  }
  if (folded.zero_grad)
    loop<true, false, Rule, T>(folded, buffers, begin, end, states);
  else
    loop<false, false, Rule, T>(folded, buffers, begin, end, states);
}

// Squares in double: those of float32 are exact, and their sum cannot overflow. Each lane adds every lane_count-th
// square, so that the order is the same for vectors of any width. `plain`: both factors are 1.
template <bool plain, class T>
GRADSTEP_INLINE void add_squares(double (&lanes)[lane_count], const T* g, std::int64_t size, T scale, double range) {
  const auto add = [&](std::int64_t i, int lane) {
    const double x = plain ? double(g[i]) : range * double(scale * g[i]);
    lanes[lane] += x * x;
  };
  std::int64_t i = 0;
  for (; i + lane_count <= size; i += lane_count)
#pragma omp simd
    for (int lane = 0; lane < lane_count; ++lane) add(i + lane, lane);
  for (int lane = 0; i < size; ++i, ++lane) add(i, lane);
}

GRADSTEP_INLINE double sum_of_lanes(double (&lanes)[lane_count]) {
  for (int half = lane_count / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

template <class T>
GRADSTEP_NOINLINE double sum_of_squares(const void* grads, std::int64_t size, double scale, double range) noexcept {
  const T* const g = static_cast<const T*>(grads);
  double lanes[lane_count] = {};
  if (scale == 1 && range == 1)
    add_squares<true>(lanes, g, size, T(1), 1);
  else
    add_squares<false>(lanes, g, size, T(scale), range);
  return sum_of_lanes(lanes);
}

// The first pass of a rule with trust ratios. A piece of the direction stays in the cache until its squares are summed.
template <class Rule, class T, std::size_t... I>
GRADSTEP_INLINE Squares measure(const Folded<Rule, T> folded, const Buffers& buffers, std::int64_t begin,
                                std::int64_t end, std::index_sequence<I...>) {
  const T* const w = static_cast<const T*>(buffers.param);
  const T* const g = static_cast<const T*>(buffers.grad);
  T* const states[] = {static_cast<T*>(buffers.states[I])...};
  constexpr std::int64_t piece = 512;
  static_assert(piece % lane_count == 0, "each piece begins at the first lane");
  T direction[piece];
  double of_param[lane_count] = {}, of_direction[lane_count] = {};
  for (; begin < end; begin += piece) {
    const std::int64_t size = end - begin < piece ? end - begin : piece;
#pragma omp simd
    for (std::int64_t i = 0; i < size; ++i) {
      T value = w[begin + i];
      const T gradient = folded.prelude(value, g[begin + i]);
      direction[i] = folded.rule.direction(value, gradient, states[I][begin + i]...);
    }
    add_squares<true>(of_param, w + begin, size, T(1), 1);
    add_squares<true>(of_direction, direction, size, T(1), 1);
  }
  return {sum_of_lanes(of_param), sum_of_lanes(of_direction)};
}

template <class Rule, class T>
GRADSTEP_NOINLINE Squares measure(const Constants& constants, const Buffers& buffers, std::int64_t begin,
                                  std::int64_t end) noexcept {
  return measure<Rule, T>(unfold<Rule, T>(constants), buffers, begin, end,
                          std::make_index_sequence<state_count<Rule>()>());
}

template <class Rule, class T>
double trust(const Constants& constants, double param_norm, double direction_norm) noexcept {
  return unfold<Rule, T>(constants).rule.trust(param_norm, direction_norm);
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
  if constexpr (Rule::spec.has_trust)
    return {fold<Rule, T>, sweep<Rule, T>, measure<Rule, T>, trust<Rule, T>};
  else
    return {fold<Rule, T>, sweep<Rule, T>};
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
      {streams_kernel<float>(std::make_index_sequence<N>())...},
      {dense_kernels<float>(), sparse_kernels<float, std::int32_t>(), sparse_kernels<float, std::int64_t>()},
      {dense_kernels<double>(), sparse_kernels<double, std::int32_t>(), sparse_kernels<double, std::int64_t>()}};
  return table;
}

}  // namespace

const Table& table() { return table_of(AllRules(), std::make_index_sequence<max_states + 1>()); }

}  // namespace gradstep::GRADSTEP_LEVEL
