#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>

#include "levels.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif
#ifndef _WIN32
#include <pthread.h>
#endif
#ifdef GRADSTEP_X86_LEVELS
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

// Sweeps a range of a job in two parts, such that the longer one begins at a cache line. NumPy's large arrays all begin
// 16 bytes into one: a vector of 64 bytes would then touch two lines at every access to every array.
void sweep_from_line(const Job& job, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t worthwhile = 4096;
  constexpr std::uintptr_t line = 64;
  std::int64_t middle = begin;
  if (end - begin >= worthwhile) {
    const auto address =
        reinterpret_cast<std::uintptr_t>(job.buffers.param) + static_cast<std::uintptr_t>(begin * job.item_size);
    middle += static_cast<std::int64_t>((line - address % line) % line) / job.item_size;
    job.kernel->sweep(*job.constants, job.buffers, begin, middle);
  }
  job.kernel->sweep(*job.constants, job.buffers, middle, end);
}

std::int64_t share_begin(std::int64_t total, int part, int parts) {
  return part == parts ? total : total / parts * part / granule * granule;
}

// The part of the jobs, laid end to end, that one of `parts` threads updates. It depends on the sizes alone, and the
// result does not depend on it: every element is updated by itself.
void run_share(const Job* jobs, std::int64_t count, std::int64_t total, int part, int parts) {
  const DefaultFloatMode mode;
  std::int64_t begin = share_begin(total, part, parts), end = share_begin(total, part + 1, parts);
  for (const Job* job = jobs; job != jobs + count && end > 0; ++job) {
    const std::int64_t first = std::max<std::int64_t>(begin, 0), last = std::min(end, job->size);
    if (first < last) sweep_from_line(*job, first, last);
    begin -= job->size;
    end -= job->size;
  }
}

void run_team(const Job* jobs, std::int64_t count, std::int64_t total, int threads) {
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  // The team may be smaller than asked, so its true size counts.
  run_share(jobs, count, total, omp_get_thread_num(), omp_get_num_threads());
#else
  (void)threads;
  run_share(jobs, count, total, 0, 1);
#endif
}

}  // namespace

void run(const Job* jobs, std::int64_t count, int threads) {
  std::int64_t total = 0;
  for (std::int64_t i = 0; i < count; ++i) total += jobs[i].size;
  const auto worthwhile = static_cast<int>(std::min<std::int64_t>(threads, total / elements_per_thread));
  if (worthwhile <= 1) {
    run_share(jobs, count, total, 0, 1);
  } else if (forks > 0) {
    // After fork() the threads that OpenMP keeps for the calling thread do not exist in the child, and waiting for
    // them would hang. A new thread has no team yet and gets a whole one.
    std::thread([=] { run_team(jobs, count, total, worthwhile); }).join();
  } else {
    run_team(jobs, count, total, worthwhile);
  }
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

#if defined(GRADSTEP_X86_LEVELS)
DefaultFloatMode::DefaultFloatMode() : before_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
DefaultFloatMode::~DefaultFloatMode() { _mm_setcsr(static_cast<unsigned>(before_)); }
#elif defined(__aarch64__) && defined(__GNUC__)  // untested
DefaultFloatMode::DefaultFloatMode() {
  const std::uint64_t standard = 0;
  __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
  __asm__ volatile("msr fpcr, %0" : : "r"(standard));
}
DefaultFloatMode::~DefaultFloatMode() { __asm__ volatile("msr fpcr, %0" : : "r"(before_)); }
#else
DefaultFloatMode::DefaultFloatMode() : before_(0) {}
DefaultFloatMode::~DefaultFloatMode() {}
#endif

}  // namespace gradstep
