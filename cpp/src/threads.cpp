#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "compiler.hpp"
#include "levels.hpp"
#include "math.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif
#ifndef _WIN32
#include <pthread.h>
#endif
#ifdef GRADSTEP_X86_64
#include <xmmintrin.h>
#endif

namespace gradstep {
namespace {

// Shares begin at multiples of this, so that no two threads write to one cache line of an aligned array.
constexpr std::int64_t granule = 64;

std::atomic<int> max_threads{0};  // 0: not decided yet
std::atomic<int> forks{0};

#ifndef _WIN32
// Registered when the library is loaded, because any other library may use the same OpenMP runtime before we do.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { ++forks; });
#endif

int threads_from_environment() {
  const char* text = std::getenv("GRADSTEP_NUM_THREADS");
  if (text && *text) {
    const bool digits = std::strspn(text, "0123456789") == std::strlen(text) && std::strlen(text) < 9;
    const int threads = digits ? std::atoi(text) : 0;
    if (threads < 1 || threads > thread_limit)
      throw std::invalid_argument("GRADSTEP_NUM_THREADS must be a whole number from 1 to " +
                                  std::to_string(thread_limit) + ", got " + quoted(text));
    return threads;
  }
#ifdef _OPENMP
  return std::min(omp_get_max_threads(), thread_limit);
#else
  return 1;
#endif
}

// Sweeps a range of a job in two parts, such that the longer one begins at a cache line of the parameter, and so of the
// states, which optimizers allocate beside it. NumPy's large arrays all begin 16 bytes into a line: a vector of 64
// bytes would then touch two lines at every access to every array.
void sweep_from_line(const Job& job, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t worthwhile = 256;
  constexpr std::uintptr_t line = 64;
  std::int64_t middle = begin;
  if (end - begin >= worthwhile) {
    const auto address =
        reinterpret_cast<std::uintptr_t>(job.buffers.param) + static_cast<std::uintptr_t>(begin * job.item_size);
    middle += static_cast<std::int64_t>((line - address % line) % line) / job.item_size;
    if (begin < middle) job.kernel->sweep(*job.constants, job.buffers, begin, middle);
  }
  job.kernel->sweep(*job.constants, job.buffers, middle, end);
}

// Sweeps the pieces that begin in a range of a job.
void sweep_pieces(const Job& job, std::int64_t first, std::int64_t last) {
  sweep_stored(job, round_up(first, stored_piece), std::min(round_up(last, stored_piece), job.size));
}

std::int64_t total_size(const Job* jobs, std::int64_t count) {
  std::int64_t total = 0;
  for (std::int64_t i = 0; i < count; ++i) total += jobs[i].size;
  return total;
}

[[maybe_unused]] std::int64_t share_begin(std::int64_t total, int part, int parts) {
  return part == parts ? total : total / parts * part / granule * granule;
}

// One thread's share of the jobs, laid end to end. It depends on the sizes alone, and the result does not depend on it.
struct Share {
  std::int64_t begin, end;
};

template <class Work>
void run_team(std::int64_t total, int threads, const Work& work) {
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  {
    // The team may be smaller than asked, so its true size counts.
    const int part = omp_get_thread_num(), parts = omp_get_num_threads();
    work(Share{share_begin(total, part, parts), share_begin(total, part + 1, parts)});
  }
#else
  (void)threads;
  work(Share{0, total});
#endif
}

// The same in a child of fork(), for the parts from `first` to `last`. The threads that OpenMP keeps for the calling
// thread do not exist there, and waiting for them would hang. Where no new thread is to be had, the calling one does
// its part: another pass of the step may have been written.
template <class Work>
void run_parts(std::int64_t total, int first, int last, int parts, const Work& work) {
  if (last - first == 1) return work(Share{share_begin(total, first, parts), share_begin(total, last, parts)});
  const int middle = first + (last - first) / 2;
  std::thread other;
  try {
    other = std::thread([&] { run_parts(total, middle, last, parts, work); });
  } catch (const std::exception&) {
  }
  run_parts(total, first, middle, parts, work);
  if (other.joinable())
    other.join();
  else
    run_parts(total, middle, last, parts, work);
}

// Calls work(share) on as many threads as are worth it, and returns when all are done. An element may stand for more
// than one, a column of a table for all that it holds.
template <class Work>
void share_out(std::int64_t total, int threads, const Work& work, std::int64_t elements_in_one = 1) {
  // A thread that has to be made costs some ten times as much as one that is woken.
  const std::int64_t least = forks > 0 ? 16 * elements_per_thread : elements_per_thread;
  const std::int64_t needed = std::max<std::int64_t>(least / elements_in_one, granule);
  const auto worthwhile = static_cast<int>(std::min<std::int64_t>(threads, total / needed));
  if (worthwhile <= 1) {
    work(Share{0, total});
  } else if (forks > 0) {
    run_parts(total, 0, worthwhile, worthwhile, work);
  } else {
    run_team(total, worthwhile, work);
  }
}

std::int64_t blocks_of(const Job& job) { return (job.size + block_size - 1) / block_size; }

// Calls work(job, begin, end, block) for each block of each job, counted from the first block of the first job.
template <class Work>
void for_each_block(const Job* jobs, std::int64_t count, int threads, Denormals denormals, const Work& work) {
  share_out(total_size(jobs, count), threads, [=, &work](Share share) {
    const FloatMode mode(denormals);
    std::int64_t block = 0;
    for (const Job* job = jobs; job != jobs + count && share.end > 0; ++job) {
      // A block belongs to the share that it begins in.
      for (std::int64_t begin = 0; begin < job->size; begin += block_size, ++block)
        if (share.begin <= begin && begin < share.end)
          work(*job, begin, std::min(begin + block_size, job->size), block);
      share = {share.begin - job->size, share.end - job->size};
    }
  });
}

}  // namespace

void run(const Job* jobs, std::int64_t count, int threads, Denormals denormals) {
  share_out(total_size(jobs, count), threads, [=](Share share) {
    const FloatMode mode(denormals);
    for (const Job* job = jobs; job != jobs + count && share.end > 0; ++job) {
      const std::int64_t first = std::max<std::int64_t>(share.begin, 0), last = std::min(share.end, job->size);
      if (job->stored)
        sweep_pieces(*job, first, last);
      else if (first < last)
        sweep_from_line(*job, first, last);
      share = {share.begin - job->size, share.end - job->size};
    }
  });
}

std::int64_t count_blocks(const Job* jobs, std::int64_t count) {
  std::int64_t blocks = 0;
  for (std::int64_t i = 0; i < count; ++i) blocks += blocks_of(jobs[i]);
  return blocks;
}

void sum_blocks(const Job* jobs, std::int64_t count, int threads, Denormals denormals, const Table& table, double scale,
                double range, double* sums) {
  for_each_block(jobs, count, threads, denormals,
                 [=, &table](const Job& job, std::int64_t begin, std::int64_t end, std::int64_t block) {
                   const SumOfSquares squares = job.item_size == 4 ? table.float32_squares : table.float64_squares;
                   alignas(64) char room[block_size * sizeof(double)];
                   sums[block] = squares(gradients_of(job, begin, end - begin, room), end - begin, scale, range);
                 });
}

void measure_blocks(const Job* jobs, std::int64_t count, int threads, Denormals denormals, Squares* squares) {
  for_each_block(jobs, count, threads, denormals,
                 [=](const Job& job, std::int64_t begin, std::int64_t end, std::int64_t block) {
                   if (job.kernel->measure)
                     squares[block] = job.kernel->measure(*job.constants, job.buffers, begin, end);
                 });
}

void for_each(std::int64_t count, std::int64_t size, int threads, Denormals denormals,
              const std::function<void(std::int64_t)>& work) {
  share_out(count * size, threads, [&](Share share) {
    const FloatMode mode(denormals);
    // Each belongs to the share that it begins in.
    for (std::int64_t i = (share.begin + size - 1) / size; i * size < share.end; ++i) work(i);
  });
}

namespace {

// As sum_rows(), for a range of one job. The sums of a block stay in the cache while the rows go by.
template <class T>
void sum_range(const Job& job, AddRows add_rows, const Spec& spec, const TableRows& rows, std::int64_t begin,
               std::int64_t end) {
  constexpr std::int64_t block = 4096;
  T* const sum = static_cast<T*>(job.buffers.states[spec.row_sum]);
  const T* const table = static_cast<const T*>(job.buffers.states[spec.row_state]);
  double sums[block], weights[rows_at_once];
  const void* places[rows_at_once];
  for (; begin < end; begin += block) {
    const std::int64_t size = std::min(block, end - begin);
    std::fill_n(sums, size, 0.0);
    int count = 0;
    for (std::int64_t row = 0; row < rows.count; ++row) {
      if (!rows.seen[row]) continue;
      places[count] = table + row * job.size + begin;
      weights[count] = rows.weights ? rows.weights[row] : 1.0;
      if (++count == rows_at_once) add_rows(sums, places, weights, std::exchange(count, 0), size);
    }
    add_rows(sums, places, weights, count, size);
    for (std::int64_t i = 0; i < size; ++i) sum[begin + i] = static_cast<T>(sums[i]);
  }
}

}  // namespace

void sum_rows(const Job* jobs, std::int64_t count, int threads, Denormals denormals, const Table& table,
              const Spec& spec, const TableRows& rows) {
  const auto work = [=, &table](Share share) {
    const FloatMode mode(denormals);
    for (const Job* job = jobs; job != jobs + count && share.end > 0; ++job) {
      const std::int64_t first = std::max<std::int64_t>(share.begin, 0), last = std::min(share.end, job->size);
      if (job->item_size == 4)
        sum_range<float>(*job, table.float32_add_rows, spec, rows, first, last);
      else
        sum_range<double>(*job, table.float64_add_rows, spec, rows, first, last);
      share = {share.begin - job->size, share.end - job->size};
    }
  };
  share_out(total_size(jobs, count), threads, work, rows.count);
}

double sum_tree(double* sums, std::int64_t count) {
  if (count == 0) return 0;
  for (; count > 1; count = (count + 1) / 2) {
    for (std::int64_t i = 0; i < count / 2; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
    if (count % 2 == 1) sums[count / 2] = sums[count - 1];
  }
  return sums[0];
}

int get_num_threads() {
  if (max_threads == 0) {
    int undecided = 0;
    max_threads.compare_exchange_strong(undecided, threads_from_environment());
  }
  return max_threads;
}

void set_num_threads(int threads) { max_threads = threads; }

int fork_count() { return forks; }

int openmp_version() {
#ifdef _OPENMP
  return _OPENMP;
#else
  return 0;
#endif
}

#if defined(GRADSTEP_X86_64)
bool can_flush_denormals() { return true; }
FloatMode::FloatMode(Denormals denormals) {
  constexpr unsigned seen_exceptions = 0x003F, masked_exceptions = 0x1F80, flush_results = 0x8000,
                     flush_operands = 0x0040;
  const unsigned mode = masked_exceptions | (denormals == Denormals::flush ? flush_results | flush_operands : 0);
  const unsigned before = _mm_getcsr();
  changed_ = (before & ~seen_exceptions) != mode;  // nearly never, and writing waits for all that is under way
  before_ = before;
  if (changed_) _mm_setcsr(mode);
}
FloatMode::~FloatMode() {
  if (changed_) _mm_setcsr(static_cast<unsigned>(before_));
}
#elif defined(__aarch64__) && defined(__GNUC__)
bool can_flush_denormals() { return true; }
FloatMode::FloatMode(Denormals denormals) {
  const std::uint64_t flush = std::uint64_t{1} << 24, mode = denormals == Denormals::flush ? flush : 0;
  __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
  __asm__ volatile("msr fpcr, %0" : : "r"(mode));
}
FloatMode::~FloatMode() { __asm__ volatile("msr fpcr, %0" : : "r"(before_)); }
#else
bool can_flush_denormals() { return false; }
FloatMode::FloatMode(Denormals) : before_(0) {}
FloatMode::~FloatMode() {}
#endif

}  // namespace gradstep
