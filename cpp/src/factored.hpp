// Second moments that are kept as factors, one per row and one per column of each matrix: what a level has for them.
//
// The squares of a gradient are summed by tiles, in double, along the rows and down the columns. A row's sum within a
// tile goes by lanes, a column's from the first row to the last; then tiles are added in their order. All of this is
// part of the definition of the result.
#pragma once

#include "folded.hpp"
#include "squares.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

template <class Rule, class T>
GRADSTEP_LOOP void sum_tile(const Constants& constants, const Buffers& buffers, const Tile& tile, double* row_sums,
                            std::int64_t stride, double* column_sums) noexcept {
  const Prelude<T> prelude = unfold<Rule, T>(constants).prelude;
  const std::int64_t columns = buffers.matrices.columns;
  T gradient[tile_columns];
  for (std::int64_t row = tile.row; row < tile.row + tile.rows; ++row, row_sums += stride) {
    const T* const g = static_cast<const T*>(buffers.grad) + row * columns + tile.column;
#pragma omp simd
    for (std::int64_t j = 0; j < tile.columns; ++j) {
      T no_param = 0;
      gradient[j] = prelude(no_param, g[j]);
      column_sums[j] += double(gradient[j]) * double(gradient[j]);
    }
    double lanes[lane_count] = {};
    add_squares<true>(lanes, gradient, tile.columns, T(1), 1);
    *row_sums = sum_of_lanes(lanes);
  }
}

template <class Rule, class T>
GRADSTEP_LOOP void take_factors(const Constants& constants, const Buffers& buffers, std::int64_t matrix,
                                const double* row_sums, std::int64_t tiles_across, double* column_sums,
                                std::int64_t tiles_down, void* row_factors) noexcept {
  const Rule rule = unfold<Rule, T>(constants).rule;
  const std::int64_t rows = buffers.matrices.rows, columns = buffers.matrices.columns;
  T* const row_var = static_cast<T*>(buffers.states[Rule::spec.row_factor]) + matrix * rows;
  T* const column_var = static_cast<T*>(buffers.states[Rule::spec.row_factor + 1]) + matrix * columns;
  T* const factors = static_cast<T*>(row_factors) + matrix * rows;
  double total = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    double sum = 0;
    for (std::int64_t tile = 0; tile < tiles_across; ++tile) sum += row_sums[row * tiles_across + tile];
    row_var[row] = rule.averaged(row_var[row], T(sum / double(columns)));
    total += double(row_var[row]);
  }
  const T mean = rule.at_least_eps(T(total / double(rows)));
  for (std::int64_t row = 0; row < rows; ++row) factors[row] = row_var[row] / mean;
  for (std::int64_t tile = 1; tile < tiles_down; ++tile)
#pragma omp simd
    for (std::int64_t j = 0; j < columns; ++j) column_sums[j] += column_sums[tile * columns + j];
#pragma omp simd
  for (std::int64_t j = 0; j < columns; ++j)
    column_var[j] = rule.averaged(column_var[j], T(column_sums[j] / double(rows)));
}

// Calls work(place, size, row_factor, column_factors) for each piece of a row between two places of an array.
template <class Rule, class T, class Work>
GRADSTEP_INLINE void along_rows(const Buffers& buffers, std::int64_t begin, std::int64_t end, const Work& work) {
  const std::int64_t rows = buffers.matrices.rows, columns = buffers.matrices.columns;
  const T* const row_factors = static_cast<const T*>(buffers.row_factors);
  const T* const column_var = static_cast<const T*>(buffers.states[Rule::spec.row_factor + 1]);
  std::int64_t row = begin / columns, column = begin % columns;
  while (begin < end) {
    const std::int64_t rest = columns - column, size = rest < end - begin ? rest : end - begin;
    work(begin, size, row_factors[row], column_var + row / rows * columns + column);
    begin += size;
    ++row;
    column = 0;
  }
}

template <bool zero_grad, class Rule, class T>
GRADSTEP_INLINE void factored_loop(const Folded<Rule, T> folded, const Buffers& buffers, std::int64_t begin,
                                   std::int64_t end) {
  T* const w = static_cast<T*>(buffers.param);
  T* const g = static_cast<T*>(buffers.grad);
  along_rows<Rule, T>(buffers, begin, end,
                      [=](std::int64_t place, std::int64_t size, T row_factor, const T* column_factors) {
#pragma omp simd
                        for (std::int64_t j = 0; j < size; ++j) {
                          T value = w[place + j], variance = row_factor * column_factors[j];
                          const T gradient = folded.prelude(value, g[place + j]);
                          folded.rule(value, gradient, variance);
                          w[place + j] = value;
                          if constexpr (zero_grad) g[place + j] = 0;
                        }
                      });
}

template <class Rule, class T>
GRADSTEP_INLINE void factored_directions(const Folded<Rule, T> folded, const Buffers& buffers, std::int64_t begin,
                                         std::int64_t end, T* direction) {
  const T* const g = static_cast<const T*>(buffers.grad);
  along_rows<Rule, T>(buffers, begin, end,
                      [=](std::int64_t place, std::int64_t size, T row_factor, const T* column_factors) {
#pragma omp simd
                        for (std::int64_t j = 0; j < size; ++j) {
                          T no_param = 0;
                          const T gradient = folded.prelude(no_param, g[place + j]);
                          direction[place - begin + j] = folded.rule.towards(gradient, row_factor * column_factors[j]);
                        }
                      });
}

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
