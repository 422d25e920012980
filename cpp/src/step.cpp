#include "step.hpp"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace gradstep {
namespace {

// Multiplies the gradients by clip_norm / norm. A factor that float32 or float64 could not hold, after a gradient
// that has exploded, is divided among both multiplications.
void set_clip(Step& step, double clip_norm, double norm) {
  int exponent, exponent_of_norm;
  const double ratio = std::frexp(clip_norm, &exponent) / std::frexp(norm, &exponent_of_norm);
  exponent -= exponent_of_norm;
  const int shared = exponent < -64 ? exponent / 2 : 0;
  step.grad_scale = std::ldexp(step.grad_scale, shared);
  step.clip = std::ldexp(ratio, exponent - shared);
}

}  // namespace

Norm grad_norm(const Batch& batch, const Table& table, double scale) {
  constexpr std::int64_t few = 64;  // blocks, whose sums need no memory of their own
  double sums_of_few[few];
  std::vector<double> sums_of_many;
  double* sums = sums_of_few;
  if (const std::int64_t blocks = count_blocks(batch.jobs, batch.count); blocks > few) {
    sums_of_many.resize(static_cast<std::size_t>(blocks));
    sums = sums_of_many.data();
  }
  const auto total = [&](const Job* jobs, std::int64_t count, double range) {
    sum_blocks(jobs, count, batch.threads, batch.denormals, table, scale, range, sums);
    return sum_tree(sums, count_blocks(jobs, count));
  };
  double range = 1, unit = 1;
  double sum = total(batch.jobs, batch.count, range);
  if (batch.float64) {
    // Squares of float64 can overflow or underflow: then again, with a power of two that brings them back.
    constexpr double down = 0x1p-540, up = 0x1p540, tiny = 0x1p-960;
    if (!std::isfinite(sum))
      range = down, unit = up;
    else if (sum < tiny)
      range = up, unit = down;
    if (range != 1) sum = total(batch.jobs, batch.count, range);
  }
  std::int64_t culprit = -1;
  if (!std::isfinite(sum)) {
    culprit = 0;
    while (culprit + 1 < batch.count && std::isfinite(total(batch.jobs + culprit, 1, range))) ++culprit;
  }
  return {unit * std::sqrt(sum), culprit};
}

void update(Job* jobs, std::int64_t count, int threads, Denormals denormals) {
  if (std::any_of(jobs, jobs + count, [](const Job& job) { return job.kernel->measure; })) {
    const auto blocks = static_cast<std::size_t>(count_blocks(jobs, count));
    std::vector<Squares> squares(blocks);
    std::vector<double> sums(blocks);
    measure_blocks(jobs, count, threads, denormals, squares.data());
    auto block = squares.cbegin();
    for (Job* job = jobs; job != jobs + count; ++job) {
      const auto end = block + count_blocks(job, 1);
      const auto norm = [&](double Squares::* of) {
        std::transform(block, end, sums.begin(), [of](const Squares& one) { return one.*of; });
        return std::sqrt(sum_tree(sums.data(), end - block));
      };
      if (job->kernel->trust)
        job->buffers.trust = job->kernel->trust(*job->constants, norm(&Squares::param), norm(&Squares::direction));
      block = end;
    }
  }
  run(jobs, count, threads, denormals);
}

Outcome take_step(const Batch& batch, const Table& table, int rule, Step step, const Treatment& treatment, bool measure,
                  Job* second) {
  step.grad_scale = treatment.grad_scale;
  step.clip = 1;
  step.clip_value = treatment.clip_value.value_or(HUGE_VAL);
  step.zero_grad = treatment.zero_grad;
  Outcome outcome{{0, -1}, false, true};
  if (measure || treatment.clip_norm) {
    outcome.norm = grad_norm(batch, table, treatment.grad_scale);
    outcome.usable = treatment.clip_norm ? std::isfinite(outcome.norm.value) : outcome.norm.culprit < 0;
    if (outcome.usable && second) {
      Batch others = batch;
      others.jobs = second;
      outcome.usable = grad_norm(others, table, treatment.grad_scale).culprit < 0;
    }
    if (!outcome.usable) return outcome;
    outcome.clipped = treatment.clip_norm && outcome.norm.value > *treatment.clip_norm;
    if (outcome.clipped) set_clip(step, *treatment.clip_norm, outcome.norm.value);
  }
  const Entry& entry = table.entries[rule];
  if (batch.float32) entry.float32.fold(step, *batch.float32);
  if (batch.float64) entry.float64.fold(step, *batch.float64);
  update(batch.jobs, batch.count, batch.threads, batch.denormals);
  return outcome;
}

std::string why_unusable(const Norm& norm, const std::string& culprit, const std::string& all,
                         const Treatment& treatment) {
  const std::string scaled = treatment.grad_scale == 1 ? "" : " times grad_scale=" + number_text(treatment.grad_scale);
  const std::string what =
      norm.culprit < 0 ? all + scaled + " has a norm beyond float64" : culprit + scaled + " holds NaN or infinity";
  return what + (treatment.clip_norm ? ", so clip_norm cannot apply" : ", which the sum of the rows would keep") +
         "; skip_nonfinite=True skips such steps";
}

}  // namespace gradstep
