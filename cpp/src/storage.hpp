// How memory holds numbers in fewer bits than the arithmetic has, and how a number is rounded to them.
//
// Everything is made of integer operations and selects, so that it has the same bits and is vectorised at every level,
// with or without instructions for these formats.
#pragma once

#include <cstdint>
#include <utility>

#include "compiler.hpp"
#include "level.hpp"
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

  // A NaN may have all of its payload in the lower half, where rounding would make infinity of it, or so much in the
  // upper half that rounding would overflow. Asked of the bits, because a rule may have asked whether x == x, as sign()
  // does, and GCC then makes branches of the two.
  static std::uint32_t bits_to_round(float x) {
    const std::uint32_t bits = bits_of(x), size = bits & 0x7FFFFFFF;
    return static_cast<std::int32_t>(size) > 0x7F800000 ? 0x7FC00000 : bits;
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

// What each buffer multiplies those bits by, so that its numbers are rounded by chances of their own.
constexpr std::uint32_t own_chance[1 + max_states] = {0x85EBCA6B, 1, 0xC2B2AE35, 0x27D4EB2F, 0x165667B1};

// Two neighbours, of which the lower half of a word is the first.
#ifdef __BYTE_ORDER__
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the lower half of a word is the first number");
#endif
struct Pair {
  float first, second;
};

GRADSTEP_INLINE std::uint32_t word_at(const void* memory, std::int64_t i) {
  std::uint32_t word;
  std::memcpy(&word, static_cast<const char*>(memory) + 4 * i, sizeof word);
  return word;
}

GRADSTEP_INLINE Pair load_pair(const std::uint16_t* memory) {
  const std::uint32_t word = word_at(memory, 0);
  return {of_bits(word << 16), of_bits(word & 0xFFFF0000)};
}

GRADSTEP_INLINE void store_pair(std::uint16_t* memory, Pair pair, std::uint32_t chance) {
  const std::uint32_t first = BFloat16::bits_to_round(pair.first) + (chance & 0xFFFF),
                      second = BFloat16::bits_to_round(pair.second) + (chance >> 16),
                      word = (first >> 16) | (second & 0xFFFF0000);
  std::memcpy(memory, &word, sizeof word);
}

// The 32 bits of chance that a pair shares.
GRADSTEP_INLINE std::uint32_t pair_at(const std::uint16_t* chances, std::int64_t i) { return word_at(chances, i); }

// The chances of a buffer, 16 bits for each element.
GRADSTEP_INLINE const std::uint16_t* halves_of(const std::uint16_t* chances, std::int64_t size, std::uint32_t own,
                                               std::uint16_t* halves) {
  if (own == 1) return chances;
#pragma omp simd
  for (std::int64_t i = 0; i < (size + 1) / 2; ++i) {
    const std::uint32_t chance = own * pair_at(chances, i);
    std::memcpy(halves + 2 * i, &chance, sizeof chance);
  }
  return halves;
}

// Eight bits: a number of a block is a power of two, a mantissa of 3 bits, and a sign if it can have one. What the
// block shares brings the largest number to the largest power. Adding 2 to the size then brings small numbers to an
// even distance and 0 to the code 0, and the sum has the code in the middle of its bits.
template <bool has_sign>
struct Block {
  static constexpr std::uint32_t mask = has_sign ? 0x7F : 0xFF;  // of a code without its sign
  static constexpr std::uint32_t nan = mask, infinity = mask - 1;
  static constexpr int powers = has_sign ? 15 : 31;
  static constexpr std::uint32_t least = 37;  // so that no number is denormal

  // What a block begins with: the biased exponent of its largest number, made odd; then even again, unless a number is
  // not finite.
  static std::uint32_t exponent(std::uint32_t held) { return (held | 1) < least ? least : held | 1; }
  static float to_numbers(std::uint32_t exponent) { return of_bits((exponent - powers) << 23); }
  static float to_codes(std::uint32_t exponent) { return of_bits((254 + powers - exponent) << 23); }
};

// A sum that begins at 2.0 has its code above the lowest 20 bits.
constexpr std::uint32_t two = 0x40000000;
constexpr int below_code = 20;

constexpr bool is_finite(std::uint32_t size) { return size < 0x7F800000; }
constexpr bool is_nan(std::uint32_t size) { return size > 0x7F800000; }

// A number of its sum, and a sum of its number. Products by powers of two are exact, or too small to change a sum: the
// bits are the same where the processor fuses them. From the sum, 2 goes first, because the product by all of it may be
// beyond the largest number.
#ifdef __FMA__
GRADSTEP_INLINE float number_of_sum(float sum, float scale) { return __builtin_fmaf(sum, scale, -2 * scale); }
GRADSTEP_INLINE float sum_of_number(float size, float scale) { return __builtin_fmaf(size, scale, 2); }
#else
GRADSTEP_INLINE float number_of_sum(float sum, float scale) { return (sum - 2) * scale; }
GRADSTEP_INLINE float sum_of_number(float size, float scale) { return size * scale + 2; }
#endif

template <int left>
GRADSTEP_INLINE std::uint32_t shifted(std::uint32_t bits) {
  if constexpr (left >= 0)
    return bits << left;
  else
    return bits >> -left;
}

// The numbers of a block lie in four quarters, and a word of 32 bits has one of each: nothing has to change its lane.
// Those of the first two share 32 bits of chance, and so do those of the other two.
constexpr int quarter = state_block / 4;

template <bool has_sign, bool all_finite, int k>
GRADSTEP_INLINE float number_of(std::uint32_t word, float scale) {
  using Block = Block<has_sign>;
  const std::uint32_t sum = (shifted<below_code - 8 * k>(word) & (Block::mask << below_code)) | two;
  std::uint32_t bits = bits_of(number_of_sum(of_bits(sum), scale));
  if constexpr (!all_finite) {
    const std::uint32_t code = word >> (8 * k) & Block::mask;
    bits = code < Block::infinity ? bits : code == Block::nan ? 0x7FC00000 : 0x7F800000;
  }
  if constexpr (has_sign) bits |= shifted<24 - 8 * k>(word) & 0x80000000;
  return of_bits(bits);
}

template <bool has_sign>
GRADSTEP_INLINE float scale_of(unsigned char held) {
  return Block<has_sign>::to_numbers(Block<has_sign>::exponent(held));
}

// The largest size, or the largest of those that are finite: first of the four numbers of a word.
template <bool all_finite>
GRADSTEP_INLINE std::uint32_t largest_of_word(const float* numbers) {
  const auto size_at = [&](int k) {
    const std::uint32_t size = bits_of(numbers[k * quarter]) & 0x7FFFFFFF;
    return all_finite || is_finite(size) ? size : 0;
  };
  const auto larger = [](std::uint32_t a, std::uint32_t b) { return a < b ? b : a; };
  return larger(larger(size_at(0), size_at(1)), larger(size_at(2), size_at(3)));
}

GRADSTEP_INLINE std::uint32_t largest_of_all(const std::uint32_t (&of_words)[quarter]) {
  std::uint32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (int i = 0; i < quarter; ++i) largest = largest < of_words[i] ? of_words[i] : largest;
  return largest;
}

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
