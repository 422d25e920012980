#include "levels.hpp"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "compiler.hpp"

#ifdef GRADSTEP_X86_64
#if defined(_MSC_VER) && !defined(__clang__)
// Untested: the C runtime of MSVC keeps what it found of the processor and the operating system here.
extern "C" int __isa_available;
#else
#include <cpuid.h>
#endif
#endif

namespace gradstep {
namespace {

bool always() { return true; }

#ifdef GRADSTEP_X86_64
#if defined(_MSC_VER) && !defined(__clang__)
[[maybe_unused]] bool has_v3() { return __isa_available >= 5; }  // AVX2
[[maybe_unused]] bool has_v4() { return __isa_available >= 6; }  // AVX-512 F, CD, BW, DQ, VL
#else
// __builtin_cpu_supports also asks whether the operating system saves the registers. It has no names for the last
// three instruction sets of x86-64-v3 in Clang before 18, hence the bits of CPUID.
[[maybe_unused]] bool has_v3() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
  const bool movbe = (c >> 22) & 1, f16c = (c >> 29) & 1;
  if (!__get_cpuid(0x80000001, &a, &b, &c, &d)) return false;
  const bool lzcnt = (c >> 5) & 1;
  return movbe && f16c && lzcnt && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

[[maybe_unused]] bool has_v4() {
  return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
#endif

constexpr Level all_levels[] = {
    {"baseline", baseline::table, always},
#ifdef GRADSTEP_HAS_x86_64_v3
    {"x86-64-v3", x86_64_v3::table, has_v3},
#endif
#ifdef GRADSTEP_HAS_x86_64_v4
    {"x86-64-v4", x86_64_v4::table, has_v4},
#endif
};

std::atomic<const Level*> active{nullptr};

const Level& find_level(const char* name, const char* origin) {
  const std::string given = std::string(origin) + " is " + quoted(name);
  std::string known;
  for (const Level& level : all_levels) {
    if (std::strcmp(level.name, name) == 0) {
      if (level.supported()) return level;
      throw std::invalid_argument(given + ", which this processor does not support");
    }
    known += known.empty() ? level.name : std::string(", ") + level.name;
  }
  throw std::invalid_argument(given + "; the levels are " + known);
}

const Level& best_level() {
  const Level* best = all_levels;
  for (const Level& level : all_levels)
    if (level.supported()) best = &level;
  return *best;
}

}  // namespace

std::string quoted(const char* text) {
  std::string result = "'";
  for (; *text; ++text) result += *text >= ' ' && *text <= '~' ? *text : '?';
  return result + "'";
}

Levels levels() { return {all_levels, sizeof all_levels / sizeof *all_levels}; }

const Level& active_level() {
  const Level* level = active.load(std::memory_order_acquire);
  if (level) return *level;
  const char* name = std::getenv("GRADSTEP_ISA");
  // Threads that arrive here together choose the same level.
  active.store(name && *name ? &find_level(name, "GRADSTEP_ISA") : &best_level(), std::memory_order_release);
  return *active.load(std::memory_order_acquire);
}

void use_level(const char* name, const char* origin) {
  active.store(&find_level(name, origin), std::memory_order_release);
}

}  // namespace gradstep
