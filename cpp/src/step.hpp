// One whole step: measures the gradients where that is asked for, clips them, folds the scalars, runs the kernels.
// What can be wrong with its arguments has been checked.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "checks.hpp"
#include "threads.hpp"

namespace gradstep {

/// The arrays of a step, and what it runs on.
struct Batch {
  Job* jobs;
  std::int64_t count;
  Constants* float32;  // to be folded, what the jobs of this type point to; null: there are none
  Constants* float64;
  int threads;
  Denormals denormals;
};

struct Norm {
  double value;
  std::int64_t culprit;  // the first array with NaN or infinity; -1: none
};

/// A Euclidean norm, and the power of two that the elements were multiplied by, so that their squares were of use.
struct Root {
  double value, range;
  bool finite;  // whether all elements are
};

/// `total(range)` is the sum of squares of all elements, each times `range`, in the order of sum_blocks() and
/// sum_tree().
Root root_of(const std::function<double(double range)>& total, bool float64);

/// The Euclidean norm of all gradients together, each multiplied by `scale`.
Norm grad_norm(const Batch& batch, const Table& table, double scale);

struct Outcome {
  Norm norm;     // 0 where nobody asked
  bool clipped;  // whether it was above clip_norm
  bool usable;   // otherwise nothing has changed
};

/// Runs all jobs, whose constants are folded. Rules with trust ratios have theirs measured before, in a pass of its
/// own.
void update(Job* jobs, std::int64_t count, int threads, Denormals denormals);

/// Takes a step by a rule of the table, unless the gradients were measured and are not usable: not finite, or, where
/// there is a clip_norm, of a norm beyond float64. `measure` asks for that; clip_norm does too. Further gradients that
/// must be finite come as the jobs of `second`, if not null. Of `step`, the members that Treatment has are filled in.
/// Where the gradients are a part of more, `known` is the norm of all, which are finite: it is not measured then.
Outcome take_step(const Batch& batch, const Table& table, int rule, Step step, const Treatment& treatment, bool measure,
                  Job* second, std::optional<double> known = std::nullopt);

/// What to say of gradients that are not usable. `culprit` is the name of that array, `all` that of all, `option` the
/// one that skips such steps, in the caller's language.
std::string why_unusable(const Norm& norm, const std::string& culprit, const std::string& all,
                         const Treatment& treatment, const char* option = "skip_nonfinite=True");

}  // namespace gradstep
