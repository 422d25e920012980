// How memory holds numbers in fewer bits than the arithmetic has, and how a number is rounded to them.
//
// Everything is made of integer operations and selects, so that it has the same bits and is vectorised at every level,
// with or without instructions for these formats.
#pragma once

#include <cstdint>

#include "compiler.hpp"
#include "kernel.hpp"
#include "math.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

// Where it is not said otherwise, numbers are float32 and 16 bits of chance, r, are below 2^16: a number that lies a
// share s of the way between two neighbours becomes the upper one where r + s 2^16 reaches 2^16. NaN stays NaN.

// The upper half of float32.
struct BFloat16 {
  static float load(std::uint16_t bits) { return of_bits(std::uint32_t{bits} << 16); }

  static std::uint16_t nearest(float x) { return upper(x, 0x7FFF + ((bits_of(x) >> 16) & 1)); }
  static std::uint16_t stochastic(float x, std::uint32_t r) { return upper(x, r); }

  static std::uint16_t upper(float x, std::uint32_t rest) {
    return static_cast<std::uint16_t>((bits_to_round(x) + rest) >> 16);
  }

  // A NaN whose lower half overflowed would become another number. Asked of the bits, because a rule may have asked
  // whether x == x, as sign() does, and GCC then makes branches of the two.
  static std::uint32_t bits_to_round(float x) {
    const std::uint32_t bits = bits_of(x);
    return (bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC00000 : bits;
  }
};

// IEEE's binary16: 5 bits of exponent, 10 of mantissa.
struct Float16 {
  static float load(std::uint16_t bits) {
    const std::uint32_t size = bits & 0x7FFFu, sign = (bits & 0x8000u) << 16;
    const std::uint32_t normal = (size << 13) + (112u << 23), beyond = (size << 13) | 0x7F800000;
    const std::uint32_t denormal = bits_of(static_cast<float>(static_cast<std::int32_t>(size)) * 0x1p-24f);
    return of_bits(sign | (size < 0x400 ? denormal : size < 0x7C00 ? normal : beyond));
  }

  static std::uint16_t nearest(float x) {
    const std::uint32_t size = size_of(x);
    // A sum from 1/2 on has the distance of two denormals as its last bit.
    const std::uint32_t denormal = bits_of(of_bits(size < smallest_normal ? size : 0) + 0.5f) - bits_of(0.5f);
    return assembled(x, denormal, size + 0xFFF + ((size >> 13) & 1));
  }

  static std::uint16_t stochastic(float x, std::uint32_t r) {
    const std::uint32_t size = size_of(x);
    const float small = of_bits(size < smallest_normal ? size : 0);
    const auto denormal = static_cast<std::uint32_t>(static_cast<std::int32_t>(small * 0x1p40f));  // with 16 bits more
    return assembled(x, (denormal + r) >> 16, size + (r >> 3));
  }

  static constexpr std::uint32_t smallest_normal = 113u << 23, infinity = 143u << 23;

  static std::uint32_t size_of(float x) { return bits_of(x) & 0x7FFFFFFF; }

  // `rounded`: the size of a number that is no denormal here, with what lies below its last bit.
  static std::uint16_t assembled(float x, std::uint32_t denormal, std::uint32_t rounded) {
    const std::uint32_t size = size_of(x), sign = (bits_of(x) >> 16) & 0x8000;
    const std::uint32_t normal = ((rounded < infinity ? rounded : infinity) - (112u << 23)) >> 13;
    const std::uint32_t number = size < smallest_normal ? denormal : normal;
    return static_cast<std::uint16_t>(sign | (x == x ? number : 0x7E00));
  }
};

// 32 bits of chance: a member of a Weyl sequence and a key, mixed as in the first round of Wellons' "lowbias32"
// (https://nullprogram.com/blog/2018/07/31/).
GRADSTEP_INLINE std::uint32_t mixed(std::uint32_t weyl, std::uint32_t key) {
  weyl ^= weyl >> 16;
  weyl ^= key;
  weyl *= 0x7FEB352D;
  return weyl ^ (weyl >> 15);
}

// What each buffer multiplies those bits by, so that its numbers are rounded by chances of their own.
constexpr std::uint32_t own_chance[1 + max_states] = {0x85EBCA6B, 1, 0xC2B2AE35, 0x27D4EB2F, 0x165667B1};

// Two neighbours, as memory holds them: where a word of 32 bits is two numbers, nothing has to change its lane.
#ifdef __BYTE_ORDER__
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the lower half of a word is the first number");
#endif
struct Pair {
  float first, second;
};

struct Float32Pairs {
  static Pair load(const void* memory, std::int64_t i) {
    const float* const numbers = static_cast<const float*>(memory);
    return {numbers[2 * i], numbers[2 * i + 1]};
  }

  static void store(void* memory, std::int64_t i, Pair pair, std::uint32_t) {
    float* const numbers = static_cast<float*>(memory);
    numbers[2 * i] = pair.first;
    numbers[2 * i + 1] = pair.second;
  }
};

struct BFloat16Pairs {
  static Pair load(const void* memory, std::int64_t i) {
    std::uint32_t word;
    std::memcpy(&word, static_cast<const char*>(memory) + 4 * i, sizeof word);
    return {of_bits(word << 16), of_bits(word & 0xFFFF0000)};
  }

  static void store(void* memory, std::int64_t i, Pair pair, std::uint32_t chance) {
    const std::uint32_t first = BFloat16::bits_to_round(pair.first) + (chance & 0xFFFF),
                        second = BFloat16::bits_to_round(pair.second) + (chance >> 16),
                        word = (first >> 16) | (second & 0xFFFF0000);
    std::memcpy(static_cast<char*>(memory) + 4 * i, &word, sizeof word);
  }
};

template <class Number, class T>
void widen(const void* memory, void* numbers, std::int64_t size) noexcept {
  const Number* const from = static_cast<const Number*>(memory);
  T* const to = static_cast<T*>(numbers);
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) to[i] = static_cast<T>(from[i]);
}

template <class Number, class T>
void narrow(const void* numbers, void* memory, std::int64_t size, const Rounding&, int) noexcept {
  widen<T, Number>(numbers, memory, size);
}

template <class Format, class T>
void load(const void* memory, void* numbers, std::int64_t size) noexcept {
  const auto* const from = static_cast<const std::uint16_t*>(memory);
  T* const to = static_cast<T*>(numbers);
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) to[i] = static_cast<T>(Format::load(from[i]));
}

template <class Format>
void store(const void* numbers, void* memory, std::int64_t size, const Rounding& rounding, int buffer) noexcept {
  const float* const from = static_cast<const float*>(numbers);
  auto* const to = static_cast<std::uint16_t*>(memory);
  if (!rounding.stochastic) {
#pragma omp simd
    for (std::int64_t i = 0; i < size; ++i) to[i] = Format::nearest(from[i]);
    return;
  }
  const std::uint32_t key = rounding.key, own = own_chance[buffer];
  std::uint32_t weyl = rounding.weyl;
#pragma omp simd linear(weyl : weyl_step)
  for (std::int64_t i = 0; i < size / 2; ++i) {
    const std::uint32_t chance = own * mixed(weyl, key);
    weyl += weyl_step;
    to[2 * i] = Format::stochastic(from[2 * i], chance & 0xFFFF);
    to[2 * i + 1] = Format::stochastic(from[2 * i + 1], chance >> 16);
  }
  if (size % 2 == 1) to[size - 1] = Format::stochastic(from[size - 1], own * mixed(weyl, key) & 0xFFFF);
}

constexpr Converters float32_converters{{nullptr, nullptr, load<BFloat16, float>, load<Float16, float>},
                                        {nullptr, nullptr, store<BFloat16>, store<Float16>}};
constexpr Converters float64_converters{{nullptr, widen<float, double>, load<BFloat16, double>, load<Float16, double>},
                                        {nullptr, narrow<float, double>, nullptr, nullptr}};

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
