// One level of instruction sets: its table, with the kernels that belong to no rule. CMake compiles this file, rows.cpp
// and each family of rules (rules/*.cpp) once per level, with GRADSTEP_LEVEL naming it (baseline, x86_64_v3, x86_64_v4)
// and with that level's flags. Of each object, the tables alone are seen by others.

#include <cfloat>
#include <cstddef>
#include <limits>
#include <utility>

#include "compiler.hpp"
#include "converters.hpp"
#include "rules.hpp"
#include "squares.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

// The oracle's arithmetic. An x87 that keeps more bits than a type has, or a type that is not IEEE's, has other
// results.
static_assert(FLT_EVAL_METHOD == 0 && std::numeric_limits<double>::is_iec559, "float and double must be IEEE's");

template <bool plain, class T>
GRADSTEP_LOOP double squares_loop(const void* grads, std::int64_t size, double scale, double range) noexcept {
  double lanes[lane_count] = {};
  add_squares<plain>(lanes, static_cast<const T*>(grads), size, T(scale), range);
  return sum_of_lanes(lanes);
}

template <class T>
double sum_of_squares(const void* grads, std::int64_t size, double scale, double range) noexcept {
  return (scale == 1 && range == 1 ? squares_loop<true, T> : squares_loop<false, T>)(grads, size, scale, range);
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
GRADSTEP_LOOP void add_rows(double* sums, const void* const* rows, const double* weights, int count,
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

template <int size>
struct Pointers {
  const Entry* to[size];
};

template <int... sizes>
constexpr Pointers<(sizes + ...)> joined(const Entries<sizes>&... families) {
  Pointers<(sizes + ...)> all{};
  const Entry** next = all.to;
  const auto add = [&](const auto& family) {
    for (const Entry& entry : family.of) *next++ = &entry;
  };
  (add(families), ...);
  return all;
}

constexpr auto entries = joined(textbook, adaptive, layerwise, orthogonal, signs, averaging, sparse, finite_sums);

template <std::size_t... N>
constexpr Table table_of(std::index_sequence<N...>) {
  return {entries.to,
          sizeof entries.to / sizeof *entries.to,
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
          float32_rows,
          float64_rows};
}

constexpr Table all = table_of(std::make_index_sequence<max_states + 1>());

}  // namespace

const Table& table() { return all; }

}  // namespace gradstep::GRADSTEP_LEVEL
