// One step over many arrays, shared among threads.
#pragma once

#include <functional>

#include "kernel.hpp"
#include "stored.hpp"

namespace gradstep {

/// A step of fewer elements than this is not worth a second thread: waking one costs as much as updating some ten
/// thousand elements. Measured, see docs/decisions.md.
constexpr std::int64_t elements_per_thread = 16384;

/// The most threads that may be asked for. OpenMP ends the process where the system refuses to make one.
constexpr int thread_limit = 1024;

/// One parameter array of a step.
struct Job {
  const Kernel* kernel;
  const Constants* constants;
  Buffers buffers;
  std::int64_t size;
  std::int64_t item_size;          // bytes of a number, in the arithmetic
  const Stored* stored = nullptr;  // null: memory holds all numbers so
};

/// What a kernel does with denormal numbers.
enum class Denormals { keep, flush };

/// Whether Denormals::flush does anything here.
bool can_flush_denormals();

/// Runs all jobs on up to `threads` threads. Returns when every element has been updated. Needs no lock of the caller.
void run(const Job* jobs, std::int64_t count, int threads, Denormals denormals);

/// The number of blocks that the gradients of all jobs have.
std::int64_t count_blocks(const Job* jobs, std::int64_t count);

/// Writes the sum of squares of each block to `sums`, those of the first job first, by the functions of the table.
void sum_blocks(const Job* jobs, std::int64_t count, int threads, Denormals denormals, const Table& table, double scale,
                double range, double* sums);

/// Calls the `measure` of each job that has one, for each of its blocks, and writes what it returns to `squares`, in
/// the order of sum_blocks().
void measure_blocks(const Job* jobs, std::int64_t count, int threads, Denormals denormals, Squares* squares);

/// The sum of the sums, along a binary tree whose shape depends on their number alone. Overwrites them.
double sum_tree(double* sums, std::int64_t count);

/// Calls work(i) for each i below `count`, on up to `threads` threads. `size` is about how many elements each moves.
void for_each(std::int64_t count, std::int64_t size, int threads, Denormals denormals,
              const std::function<void(std::int64_t)>& work);

/// The rows of the tables of all jobs.
struct TableRows {
  std::int64_t count;
  const bool* seen;       // a row that was not seen counts as 0
  const double* weights;  // null: 1 each
};

/// Sums the rows of each job again, in double and in their order, the table being its state `row_state`, and writes the
/// result to its state `row_sum`.
void sum_rows(const Job* jobs, std::int64_t count, int threads, Denormals denormals, const Table& table,
              const Spec& spec, const TableRows& rows);

/// The most threads that a step may use: the last set_num_threads(), else GRADSTEP_NUM_THREADS, else what OpenMP
/// would take (OMP_NUM_THREADS, else the cores of this process). Throws std::invalid_argument where
/// GRADSTEP_NUM_THREADS is not a whole number from 1 to thread_limit.
int get_num_threads();
void set_num_threads(int threads);

/// The date of the OpenMP specification that was compiled in, 0 without OpenMP.
int openmp_version();

/// How many fork() this process descends from, since the library was loaded.
int fork_count();

/// Rounds to nearest, and keeps denormals or flushes them, while it lives, whatever the calling thread was set to:
/// another library may have turned flush-to-zero on for some threads, and bits must not depend on that.
class FloatMode {
 public:
  explicit FloatMode(Denormals denormals);
  ~FloatMode();
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
  [[maybe_unused]] std::uint64_t before_;
  [[maybe_unused]] bool changed_ = true;
};

}  // namespace gradstep
