// What the objects of one level give each other, beside the rules (rules.hpp). All else in them is in an anonymous
// namespace (see CONTRIBUTING.md, "The one-definition trap").
#pragma once

#include "kernel.hpp"

namespace gradstep::GRADSTEP_LEVEL {

/// The rules of a family.
template <int size>
struct Entries {
  Entry of[size];
};

extern const LinearKernels float32_rows[layout_count], float64_rows[layout_count];

/// Puts a block back, of whose sizes `largest` is the largest.
template <bool has_sign>
void store_numbers(const float* numbers, unsigned char* held, std::uint32_t largest, const std::uint16_t* chances,
                   int buffer) noexcept;

}  // namespace gradstep::GRADSTEP_LEVEL
