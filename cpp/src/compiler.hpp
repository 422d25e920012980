// What C++ has no word for.
#pragma once

#include <cstdint>

// GRADSTEP_LOOP: a function with a rule's loop. It is not inlined, so that a test and a profiler find it. All that it
// calls is, because a call would keep the loop from being vectorised.
#if defined(_MSC_VER) && !defined(__clang__)
#define GRADSTEP_NOINLINE __declspec(noinline)
#define GRADSTEP_LOOP __declspec(noinline)
#define GRADSTEP_INLINE __forceinline
#define GRADSTEP_PREFETCH(address) ((void)(address))
#else
#define GRADSTEP_NOINLINE __attribute__((noinline))
#define GRADSTEP_LOOP __attribute__((noinline, flatten))
#define GRADSTEP_INLINE inline __attribute__((always_inline))
#define GRADSTEP_PREFETCH(address) __builtin_prefetch(address)
#endif

#if defined(__x86_64__) || defined(_M_X64)
#define GRADSTEP_X86_64
#endif

namespace gradstep {
namespace {

/// Asks for all lines of the cache that begin with these bytes or among them.
[[maybe_unused]] GRADSTEP_INLINE void prefetch(const void* memory, std::int64_t bytes) {
  constexpr std::int64_t line = 64;
#pragma GCC unroll 4
  for (std::int64_t i = 0; i < bytes; i += line) GRADSTEP_PREFETCH(static_cast<const char*>(memory) + i);
}

}  // namespace
}  // namespace gradstep
