// From what memory holds to the numbers that the arithmetic has, and back.
#pragma once

#include <cstdint>
#include <utility>

#include "storage.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

template <class Number, class T>
void widen(const void* memory, void* numbers, std::int64_t size) noexcept {
  const Number* const from = static_cast<const Number*>(memory);
  T* const to = static_cast<T*>(numbers);
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) to[i] = static_cast<T>(from[i]);
}

template <class Number, class T>
void narrow(const void* numbers, void* memory, std::int64_t size, const std::uint16_t*, int) noexcept {
  widen<T, Number>(numbers, memory, size);
}

template <class Format, class T>
void load(const void* memory, void* numbers, std::int64_t size) noexcept {
  const auto* const from = static_cast<const std::uint16_t*>(memory);
  T* const to = static_cast<T*>(numbers);
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) to[i] = static_cast<T>(Format::load(from[i]));
}

// 32 bits of chance: a member of a Weyl sequence and a key, mixed as in the first round of Wellons' "lowbias32"
// (https://nullprogram.com/blog/2018/07/31/).
GRADSTEP_INLINE std::uint32_t mixed(std::uint32_t weyl, std::uint32_t key) {
  weyl ^= weyl >> 16;
  weyl ^= key;
  weyl *= 0x7FEB352D;
  return weyl ^ (weyl >> 15);
}

// Draws chances for as many pairs.
void draw(const Rounding& rounding, std::int64_t pairs, std::uint16_t* chances) noexcept {
  const std::uint32_t key = rounding.key;
  std::uint32_t weyl = rounding.weyl;
#pragma omp simd linear(weyl : weyl_step)
  for (std::int64_t i = 0; i < pairs; ++i) {
    const std::uint32_t chance = mixed(weyl, key);
    std::memcpy(chances + 2 * i, &chance, sizeof chance);
    weyl += weyl_step;
  }
}

template <class Format>
void store(const void* numbers, void* memory, std::int64_t size, const std::uint16_t* chances, int buffer) noexcept {
  const float* const from = static_cast<const float*>(numbers);
  auto* const to = static_cast<std::uint16_t*>(memory);
  if (!chances) {
#pragma omp simd
    for (std::int64_t i = 0; i < size; ++i) to[i] = Format::nearest(from[i]);
    return;
  }
  alignas(64) std::uint16_t room[stored_piece];
  const std::uint16_t* const halves = halves_of(chances, size, own_chance[buffer], room);
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) to[i] = Format::stochastic(from[i], halves[i]);
}

template <bool has_sign, bool all_finite, int... k>
GRADSTEP_INLINE void load_block(const unsigned char* codes, float* numbers, float scale,
                                std::integer_sequence<int, k...>) {
#pragma omp simd
  for (int i = 0; i < quarter; ++i) {
    const std::uint32_t word = word_at(codes, i);
    ((numbers[k * quarter + i] = number_of<has_sign, all_finite, k>(word, scale)), ...);
  }
}

template <bool has_sign>
void load_blocks(const void* memory, void* numbers, std::int64_t size) noexcept {
  constexpr auto quarters = std::make_integer_sequence<int, 4>();
  const auto* held = static_cast<const unsigned char*>(memory);
  auto* to = static_cast<float*>(numbers);
  for (; size > 0; size -= state_block, held += held_block, to += state_block) {
    const float scale = scale_of<has_sign>(*held);
    if (*held & 1)
      load_block<has_sign, false>(held + 1, to, scale, quarters);
    else
      load_block<has_sign, true>(held + 1, to, scale, quarters);
  }
}

// A number's part of the word.
template <bool has_sign, bool all_finite, int k>
GRADSTEP_INLINE std::uint32_t part_of_word(float x, float scale, const std::uint16_t* chances, std::uint32_t own) {
  using Block = Block<has_sign>;
  const std::uint32_t bits = bits_of(x), size = bits & 0x7FFFFFFF;
  const std::uint32_t known = all_finite || is_finite(size) ? size : 0;
  std::uint32_t sum = bits_of(sum_of_number(of_bits(known), scale));
  if constexpr (!has_sign) {  // a root of 0 would be divided by
    const std::uint32_t some = two + (1u << below_code), raised = sum < some ? some : sum;
    sum = known == 0 ? sum : raised;
  }
  if (chances) {
    const std::uint32_t chance = own * pair_at(chances, k / 2 * quarter);
    sum += k % 2 == 0 ? chance & ((1u << below_code) - 1) : chance >> (32 - below_code);
  } else {
    sum += (1u << (below_code - 1)) - 1 + (sum >> below_code & 1);
  }
  std::uint32_t part = shifted<8 * k - below_code>(sum) & (Block::mask << (8 * k));
  if constexpr (!all_finite) part = is_finite(size) ? part : (is_nan(size) ? Block::nan : Block::infinity) << (8 * k);
  if constexpr (has_sign) {
    const std::uint32_t minus = shifted<8 * k - 24>(bits) & (0x80u << (8 * k));
    part |= all_finite || !is_nan(size) ? minus : 0;
  }
  return part;
}

template <bool has_sign, bool all_finite, bool by_chance, int... k>
GRADSTEP_INLINE void store_block(const float* numbers, unsigned char* codes, float scale, const std::uint16_t* chances,
                                 std::uint32_t own, std::integer_sequence<int, k...>) {
#pragma omp simd
  for (int i = 0; i < quarter; ++i) {
    const std::uint32_t word = (part_of_word<has_sign, all_finite, k>(numbers[k * quarter + i], scale,
                                                                      by_chance ? chances + 2 * i : nullptr, own) |
                                ...);
    std::memcpy(codes + 4 * i, &word, sizeof word);
  }
}

template <bool all_finite>
GRADSTEP_INLINE std::uint32_t largest_of(const float* numbers) {
  alignas(64) std::uint32_t of_words[quarter];
#pragma omp simd
  for (int i = 0; i < quarter; ++i) of_words[i] = largest_of_word<all_finite>(numbers + i);
  return largest_of_all(of_words);
}

template <bool has_sign, bool all_finite>
GRADSTEP_INLINE void store_one(const float* numbers, unsigned char* held, std::uint32_t largest,
                               const std::uint16_t* chances, std::uint32_t own) {
  constexpr auto quarters = std::make_integer_sequence<int, 4>();
  const std::uint32_t exponent = Block<has_sign>::exponent(largest >> 23);
  const float scale = Block<has_sign>::to_codes(exponent);
  *held = static_cast<unsigned char>(all_finite ? exponent - 1 : exponent);
  if (chances)
    store_block<has_sign, all_finite, true>(numbers, held + 1, scale, chances, own, quarters);
  else
    store_block<has_sign, all_finite, false>(numbers, held + 1, scale, chances, own, quarters);
}

}  // namespace

template <bool has_sign>
void store_numbers(const float* numbers, unsigned char* held, std::uint32_t largest, const std::uint16_t* chances,
                   int buffer) noexcept {
  if (is_finite(largest))
    store_one<has_sign, true>(numbers, held, largest, chances, own_chance[buffer]);
  else
    store_one<has_sign, false>(numbers, held, largest_of<false>(numbers), chances, own_chance[buffer]);
}

template void store_numbers<true>(const float*, unsigned char*, std::uint32_t, const std::uint16_t*, int) noexcept;
template void store_numbers<false>(const float*, unsigned char*, std::uint32_t, const std::uint16_t*, int) noexcept;

namespace {

template <bool has_sign>
void store_blocks(const void* numbers, void* memory, std::int64_t size, const std::uint16_t* chances,
                  int buffer) noexcept {
  const auto* from = static_cast<const float*>(numbers);
  auto* held = static_cast<unsigned char*>(memory);
  for (; size > 0; size -= state_block, held += held_block, from += state_block) {
    store_numbers<has_sign>(from, held, largest_of<true>(from), chances, buffer);
    if (chances) chances += state_block;
  }
}

// `low` has a sign: it goes half of the distance to the next bfloat16, up or down.
void join(const std::uint16_t* high, const std::uint16_t* low, float* numbers, std::int64_t size) noexcept {
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) {
    const auto rest = static_cast<std::uint32_t>(static_cast<std::int32_t>(static_cast<std::int16_t>(low[i])));
    numbers[i] = of_bits((std::uint32_t{high[i]} << 16) + rest);
  }
}

void split(const float* numbers, std::uint16_t* high, std::uint16_t* low, std::int64_t size) noexcept {
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) {
    const std::uint32_t bits = bits_of(numbers[i]), known = (bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC00000 : bits;
    high[i] = static_cast<std::uint16_t>((known + 0x8000) >> 16);
    low[i] = static_cast<std::uint16_t>(known);
  }
}

constexpr Converters float32_converters{
    {nullptr, nullptr, load<BFloat16, float>, load<Float16, float>, load_blocks<true>, load_blocks<false>},
    {nullptr, nullptr, store<BFloat16>, store<Float16>, store_blocks<true>, store_blocks<false>}};
constexpr Converters float64_converters{{nullptr, widen<float, double>, load<BFloat16, double>, load<Float16, double>},
                                        {nullptr, narrow<float, double>, nullptr, nullptr}};

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
