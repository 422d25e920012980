// The rows that a step touches, as jobs: for gradients that say which rows of their parameter they have.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <vector>

#include "threads.hpp"

namespace gradstep {

/// For each row of a gradient, the row of the parameter that it belongs to. One may be named more than once.
struct RowIndices {
  const void* data = nullptr;
  bool wide = false;  // int64, otherwise int32
  std::int64_t count = 0;
};

/// An index that names no row, and where it stands.
struct WrongIndex {
  std::int64_t position, index;
};

/// A job for each row that the gradients of a step touch, ascending within each parameter. Gradients of the same row
/// are summed in the order in which they stand, in their own type. Memory is kept from step to step.
class RowJobs {
 public:
  /// Begins anew. `merges`: rows that follow one another, and their gradients too, may be one job. A norm would have
  /// other bits then.
  void clear(bool merges);

  /// Adds the rows of a parameter of so many rows. `whole` is the job of all of it, whose gradient begins where those
  /// of the rows do. Returns the first index that names no row, if there is one: then the jobs are of no use.
  std::optional<WrongIndex> add(const Job& whole, std::int64_t rows, const RowIndices& indices);

  /// Sums the gradients of the rows that have more than one. The jobs are of use afterwards.
  void sum(int threads, Denormals denormals);

  /// Fills with 0 the gradients that were summed. Those of the other rows are where the jobs have them.
  void zero_summed() const;

  Job* jobs() { return jobs_.data(); }
  std::int64_t count() const { return static_cast<std::int64_t>(jobs_.size()); }

  /// Which parameter a job is of, in the order of add().
  std::int64_t owner(std::int64_t job) const;

 private:
  struct Place {
    std::int64_t row, position;
  };

  // The gradients from `first` to `last` are those of the row of a job.
  struct Sum {
    std::size_t job, first, last;
  };

  std::optional<WrongIndex> read(const RowIndices& indices, std::int64_t rows);
  void sort(std::int64_t rows);

  bool merges_ = false;
  std::vector<Job> jobs_;
  std::vector<std::int64_t> first_jobs_;  // of each parameter
  std::vector<Place> places_, room_;      // of the parameter that is added
  std::vector<Sum> sums_;
  std::vector<char*> summed_;
  std::unique_ptr<char[]> scratch_;  // for the sums
  std::size_t scratch_size_ = 0, needed_ = 0;
};

}  // namespace gradstep
