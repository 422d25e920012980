// The losses of linear models: the slope of a row's loss at its scores, which is all that descent needs.
//
// `scores` and `slopes` have room for a multiple of output_lanes. The conventions are those of
// python/gradstep/losses.py.
#pragma once

#include <cstdint>

#include "compiler.hpp"
#include "linear.hpp"
#include "math.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

// Labels are class numbers. With one output, class 1 is positive and class 0 negative; with several, each output has
// its own class positive. No branch: a processor would guess it wrong at every other row.
inline double sign_of(double label, std::int64_t output, std::int64_t outputs) {
  const double positive = outputs == 1 ? label : static_cast<double>(label == static_cast<double>(output));
  return positive + positive - 1.0;
}

inline double largest(const double* scores, std::int64_t outputs) {
  double most = scores[0];
  for (std::int64_t k = 1; k < outputs; ++k) most = scores[k] > most ? scores[k] : most;
  return most;
}

// Writes exp(score - largest) for each output and gives their sum, added in output_lanes lanes.
inline double exponentials(const double* scores, std::int64_t outputs, double shift, double* powers) {
  double lanes[output_lanes] = {};
  for (std::int64_t k = 0; k < outputs; k += output_lanes) {
#pragma omp simd
    for (int lane = 0; lane < output_lanes; ++lane) {
      const double power = gradstep::exp(scores[k + lane] - shift);
      powers[k + lane] = power;
      lanes[lane] += k + lane < outputs ? power : 0.0;
    }
  }
  for (int half = output_lanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

/// The derivative of one row's loss by each of its scores. `target` is the row's label, or its numbers. `single`: there
/// is one output, and all stays in registers.
template <bool single>
GRADSTEP_INLINE void slopes_of(const Problem& problem, const double* scores, const double* target, double* slopes) {
  const std::int64_t outputs = single ? 1 : problem.outputs;
  switch (problem.loss) {
    case Loss::least_squares:
      for (std::int64_t k = 0; k < outputs; ++k) slopes[k] = scores[k] - target[k];
      break;
    case Loss::huber:
      for (std::int64_t k = 0; k < outputs; ++k) {
        const double residual = scores[k] - target[k];
        const double at_most = residual > problem.delta ? problem.delta : residual;
        slopes[k] = at_most < -problem.delta ? -problem.delta : at_most;
      }
      break;
    case Loss::logistic: {
      const double sign = sign_of(*target, 0, 1);
      slopes[0] = -sign / (1.0 + gradstep::exp(sign * scores[0]));
      break;
    }
    case Loss::softmax:
      if constexpr (!single) {
        const double inverse = 1.0 / exponentials(scores, outputs, largest(scores, outputs), slopes);
        for (std::int64_t k = 0; k < outputs; ++k)
          slopes[k] = slopes[k] * inverse - (static_cast<double>(k) == *target ? 1.0 : 0.0);
      }
      break;
    case Loss::squared_hinge:
      for (std::int64_t k = 0; k < outputs; ++k) {
        const double sign = sign_of(*target, k, outputs);
        const double gap = 1.0 - sign * scores[k], kept = gap < 0.0 ? 0.0 : gap;
        slopes[k] = -2.0 * (sign * kept);
      }
      break;
  }
}

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
