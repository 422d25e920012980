// What C++ has no word for.
#pragma once

#if defined(_MSC_VER) && !defined(__clang__)
#define GRADSTEP_NOINLINE __declspec(noinline)
#define GRADSTEP_INLINE __forceinline
#define GRADSTEP_PREFETCH(address) ((void)(address))
#else
#define GRADSTEP_NOINLINE __attribute__((noinline))
#define GRADSTEP_INLINE inline __attribute__((always_inline))
#define GRADSTEP_PREFETCH(address) __builtin_prefetch(address)
#endif
