#include "step.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
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

// The row and column factors of all arrays whose rule has them. All memory is there before the first is formed.
class Factors {
 public:
  Factors(Job* jobs, std::int64_t count) : jobs_(jobs), count_(count) {
    std::int64_t rows = 0, row_sums = 0, column_sums = 0;
    for (Job* job = jobs; job != jobs + count; ++job) {
      if (!is_factored(*job)) continue;
      const Grid grid(*job);
      rows += grid.all_rows();
      row_sums = std::max(row_sums, grid.all_rows() * grid.across);
      column_sums = std::max(column_sums, grid.matrices * grid.down * grid.columns);
    }
    row_factors_.resize(static_cast<std::size_t>(rows));
    row_sums_.resize(static_cast<std::size_t>(row_sums));
    column_sums_.resize(static_cast<std::size_t>(column_sums));
  }

  void form(int threads, Denormals denormals) {
    double* row_factors = row_factors_.data();
    for (Job* job = jobs_; job != jobs_ + count_; ++job) {
      if (!is_factored(*job)) continue;
      const Grid grid(*job);
      const auto sum = [&](std::int64_t i) {
        const std::int64_t across = i % grid.across, band = i / grid.across;  // counted through all matrices
        const std::int64_t matrix = band / grid.down, row = band % grid.down * tile_rows,
                           column = across * tile_columns;
        const Tile tile{matrix * grid.rows + row, std::min(tile_rows, grid.rows - row), column,
                        std::min(tile_columns, grid.columns - column)};
        double* const column_sums = column_sums_.data() + band * grid.columns + column;
        std::fill_n(column_sums, tile.columns, 0.0);
        job->kernel->sum_tile(*job->constants, job->buffers, tile, row_sums_.data() + tile.row * grid.across + across,
                              grid.across, column_sums);
      };
      const auto take = [&](std::int64_t matrix) {
        job->kernel->take_factors(*job->constants, job->buffers, matrix,
                                  row_sums_.data() + matrix * grid.rows * grid.across, grid.across,
                                  column_sums_.data() + matrix * grid.down * grid.columns, grid.down, row_factors);
      };
      // By reference: a std::function that keeps a copy needs memory.
      for_each(grid.tiles(), job->size / grid.tiles(), threads, denormals, std::cref(sum));
      for_each(grid.matrices, job->size / grid.matrices, threads, denormals, std::cref(take));
      job->buffers.row_factors = row_factors;
      row_factors += grid.all_rows();
    }
  }

 private:
  // How the matrices of an array fall into tiles.
  struct Grid {
    explicit Grid(const Job& job)
        : rows(job.buffers.matrices.rows),
          columns(job.buffers.matrices.columns),
          matrices(job.size / (rows * columns)),
          across((columns + tile_columns - 1) / tile_columns),
          down((rows + tile_rows - 1) / tile_rows) {}

    std::int64_t all_rows() const { return matrices * rows; }
    std::int64_t tiles() const { return matrices * down * across; }

    std::int64_t rows, columns, matrices, across, down;
  };

  static bool is_factored(const Job& job) {
    return job.kernel->sum_tile && job.buffers.matrices.columns > 0 && job.size > 0;
  }

  Job* jobs_;
  std::int64_t count_;
  std::vector<double> row_factors_;  // room for float32 or float64
  std::vector<double> row_sums_, column_sums_;
};

}  // namespace

Root root_of(const std::function<double(double range)>& total, bool float64) {
  double range = 1, unit = 1;
  double sum = total(range);
  if (float64) {
    // Squares of float64 can overflow or underflow: then again, with a power of two that brings them back.
    constexpr double down = 0x1p-540, up = 0x1p540, tiny = 0x1p-960;
    if (!std::isfinite(sum))
      range = down, unit = up;
    else if (sum < tiny)
      range = up, unit = down;
    if (range != 1) sum = total(range);
  }
  return {unit * std::sqrt(sum), range, std::isfinite(sum)};
}

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
  const auto total_of_all = [&](double range) { return total(batch.jobs, batch.count, range); };
  const Root root = root_of(std::cref(total_of_all), batch.float64 != nullptr);
  std::int64_t culprit = -1;
  if (!root.finite) {
    culprit = 0;
    while (culprit + 1 < batch.count && std::isfinite(total(batch.jobs + culprit, 1, root.range))) ++culprit;
  }
  return {root.value, culprit};
}

void update(Job* jobs, std::int64_t count, int threads, Denormals denormals) {
  const bool measures = std::any_of(jobs, jobs + count, [](const Job& job) { return job.kernel->measure; });
  const auto blocks = static_cast<std::size_t>(measures ? count_blocks(jobs, count) : 0);
  std::vector<Squares> squares(blocks);
  std::vector<double> sums(blocks);
  Factors factors(jobs, measures ? count : 0);  // the last that could fail
  if (measures) {
    factors.form(threads, denormals);
    measure_blocks(jobs, count, threads, denormals, squares.data());
    auto block = squares.cbegin();
    for (Job* job = jobs; job != jobs + count; ++job) {
      const auto end = block + count_blocks(job, 1);
      const auto norm = [&](double Squares::* of) {
        std::transform(block, end, sums.begin(), [of](const Squares& one) { return one.*of; });
        return std::sqrt(sum_tree(sums.data(), end - block));
      };
      if (job->kernel->trust)
        job->buffers.trust =
            job->kernel->trust(*job->constants, norm(&Squares::param), norm(&Squares::direction), job->size);
      block = end;
    }
  }
  run(jobs, count, threads, denormals);
}

Outcome take_step(const Batch& batch, const Table& table, int rule, Step step, const Treatment& treatment, bool measure,
                  Job* second, std::optional<double> known) {
  step.grad_scale = treatment.grad_scale;
  step.clip = 1;
  step.clip_value = treatment.clip_value.value_or(HUGE_VAL);
  step.zero_grad = treatment.zero_grad;
  step.flushes = batch.denormals == Denormals::flush;
  Outcome outcome{{0, -1}, false, true};
  if (measure || treatment.clip_norm) {
    outcome.norm = known ? Norm{*known, -1} : grad_norm(batch, table, treatment.grad_scale);
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
  const Entry& entry = *table.entries[rule];
  if (batch.float32) entry.float32.fold(step, *batch.float32);
  if (batch.float64) entry.float64.fold(step, *batch.float64);
  update(batch.jobs, batch.count, batch.threads, batch.denormals);
  return outcome;
}

std::string why_unusable(const Norm& norm, const std::string& culprit, const std::string& all,
                         const Treatment& treatment, const char* option) {
  const std::string scaled = treatment.grad_scale == 1 ? "" : " times grad_scale=" + number_text(treatment.grad_scale);
  const std::string what =
      norm.culprit < 0 ? all + scaled + " has a norm beyond float64" : culprit + scaled + " holds NaN or infinity";
  return what + (treatment.clip_norm ? ", so clip_norm cannot apply" : ", which the sum of the rows would keep") +
         "; " + option + " skips such steps";
}

}  // namespace gradstep
