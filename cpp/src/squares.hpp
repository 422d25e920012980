// Sums of squares, in an order that is part of their definition.
#pragma once

#include <cstdint>

#include "compiler.hpp"
#include "kernel.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

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
#pragma GCC unroll 32
    for (int lane = 0; lane < lane_count; ++lane) add(i + lane, lane);
  for (int lane = 0; i < size; ++i, ++lane) add(i, lane);
}

GRADSTEP_INLINE double sum_of_lanes(double (&lanes)[lane_count]) {
  for (int half = lane_count / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
