// Mathematics that has the same bits on every processor.
//
// The C library picks other variants of pow, exp, log and cos for processors with FMA, and their last bits differ.
// These functions are made of IEEE + - * / alone, so they do not. Everything is in an anonymous namespace: each
// object keeps its own copy, compiled for its own level.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

#include "compiler.hpp"

namespace gradstep {
namespace {

// The C functions and not std::sqrt, whose template code would be shared between levels.
[[maybe_unused]] inline float root(float x) { return ::sqrtf(x); }
[[maybe_unused]] inline double root(double x) { return ::sqrt(x); }

/// Yes or no, as a number: a large loop is not vectorised where it selects by a bool.
template <class T>
class Flag {
 public:
  Flag() = default;
  Flag(bool yes) : number_(yes ? T(1) : T(0)) {}
  operator bool() const { return number_ != 0; }

 private:
  T number_;
};

/// The nearest number to x within plus and minus the limit; NaN stays.
template <class T>
GRADSTEP_INLINE T clipped(T x, T limit) {
  x = x > limit ? limit : x;
  return x < -limit ? -limit : x;
}

/// 1, -1, or 0; NaN stays.
template <class T>
GRADSTEP_INLINE T sign(T x) {
  const T up = x > 0 ? T(1) : T(0), down = x < 0 ? T(1) : T(0);
  return x == x ? up - down : x;
}

/// The least multiple from n on.
[[maybe_unused]] constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

[[maybe_unused]] inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

[[maybe_unused]] inline float of_bits(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline std::uint64_t bits_of(double x) {
  std::uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline double of_bits(std::uint64_t bits) {
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

/// base^n for n >= 0 by repeated squaring. Relative error below n * 2^-53.
[[maybe_unused]] inline double power(double base, std::int64_t n) {
  double result = 1.0;
  for (; n > 0; n >>= 1) {
    // base or 1, without a branch: as n goes on from step to step, it would be guessed wrong.
    const std::uint64_t odd = std::uint64_t{0} - static_cast<std::uint64_t>(n & 1), one = bits_of(1.0);
    result *= of_bits(one ^ ((bits_of(base) ^ one) & odd));
    base *= base;
  }
  return result;
}

// ln 2 in two parts; the upper one has 21 trailing zero bits, so that k * ln2_high is exact for |k| < 2^20.
constexpr double ln2_high = 6.93147180369123816490e-01;
constexpr double ln2_low = 1.90821492927058770002e-10;

// Added to a number below 2^51 and taken away again, it rounds that number to a whole one, whose low bits are then
// those of the sum.
constexpr double rounder = 0x1.8p52;

// 2^(i/32), rounded correctly.
constexpr double fraction_powers[32] = {
    0x1.p+0,
    0x1.059b0d3158574p+0,
    0x1.0b5586cf9890fp+0,
    0x1.11301d0125b51p+0,
    0x1.172b83c7d517bp+0,
    0x1.1d4873168b9aap+0,
    0x1.2387a6e756238p+0,
    0x1.29e9df51fdee1p+0,
    0x1.306fe0a31b715p+0,
    0x1.371a7373aa9cbp+0,
    0x1.3dea64c123422p+0,
    0x1.44e086061892dp+0,
    0x1.4bfdad5362a27p+0,
    0x1.5342b569d4f82p+0,
    0x1.5ab07dd485429p+0,
    0x1.6247eb03a5585p+0,
    0x1.6a09e667f3bcdp+0,
    0x1.71f75e8ec5f74p+0,
    0x1.7a11473eb0187p+0,
    0x1.82589994cce13p+0,
    0x1.8ace5422aa0dbp+0,
    0x1.93737b0cdc5e5p+0,
    0x1.9c49182a3f090p+0,
    0x1.a5503b23e255dp+0,
    0x1.ae89f995ad3adp+0,
    0x1.b7f76f2fb5e47p+0,
    0x1.c199bdd85529cp+0,
    0x1.cb720dcef9069p+0,
    0x1.d5818dcfba487p+0,
    0x1.dfc97337b9b5fp+0,
    0x1.ea4afa2a490dap+0,
    0x1.f50765b6e4540p+0,
};

/// 2^k for a whole number -1022 <= k <= 1023.
inline double power_of_two(double k) { return of_bits(bits_of(k + (rounder + 1023)) << 52); }

/// e^x: x = (32 n + i) ln(2)/32 + r with |r| <= ln(2)/64, then 2^n 2^(i/32) times the Taylor series of e^r. Error below
/// 1.1 ulp (tested). No branches, so that it can be computed for many numbers at once.
GRADSTEP_INLINE double exp(double x) {
  // Beyond these the result is infinite or 0; NaN passes.
  x = x < -746.0 ? -746.0 : x;
  x = x > 710.0 ? 710.0 : x;
  const double shifted = x * 0x1.71547652b82fep+5 + rounder;  // 32 / ln 2
  const double k = shifted - rounder;
  const double r = (x - k * (ln2_high / 32)) - k * (ln2_low / 32);
  const double r2 = r * r;
  const double series = (1.0 / 2 + r * (1.0 / 6)) + r2 * ((1.0 / 24 + r * (1.0 / 120)) + r2 * (1.0 / 720));
  const double fraction = fraction_powers[bits_of(shifted) & 31];
  const double n = ((k - 15.5) * (1.0 / 32) + rounder) - rounder;
  // Two factors, because 2^n alone can lie outside the normal range where the result does not.
  const double half = (n * 0.5 + rounder) - rounder;
  const double scaled = fraction * power_of_two(half);  // exact
  return (scaled + scaled * (r + r2 * series)) * power_of_two(n - half);
}

/// ln x: x = 2^k (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2), then the series of 2 atanh(s), s = f / (2 + f).
/// Error below 1 ulp (tested bound: 2).
GRADSTEP_INLINE double log(double x) {
  if (!(x > 0.0)) return x == 0.0 ? -HUGE_VAL : NAN;
  if (x == HUGE_VAL) return x;
  std::int64_t k = 0;
  if (x < 2.2250738585072014e-308) {  // denormal
    x *= 18014398509481984.0;         // 2^54
    k = -54;
  }
  std::uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  k += static_cast<std::int64_t>(bits >> 52) - 1023;
  double mantissa = x;
  bits = (bits & 0xFFFFFFFFFFFFFULL) | 0x3FF0000000000000ULL;
  std::memcpy(&mantissa, &bits, sizeof mantissa);
  if (mantissa > 1.4142135623730951) {
    mantissa *= 0.5;
    ++k;
  }
  const double f = mantissa - 1.0;
  const double s = f / (2.0 + f);
  const double z = s * s;
  double series = 0.0;  // 2 atanh(s) / s - 2
  for (int n = 11; n >= 1; --n) series = z * (2.0 / (2 * n + 1) + series);
  const double kd = static_cast<double>(k);
  return kd * ln2_high - ((s * (f - series) - kd * ln2_low) - f);
}

/// cos(pi x): exact reduction to [0, 1/4], then the Taylor series of cos or sin. Error below 2 ulp of 1.
[[maybe_unused]] inline double cos_pi(double x) {
  if (!(x - x == 0.0)) return NAN;
  double r = ::fabs(x);
  r -= 2.0 * ::floor(r * 0.5);    // [0, 2)
  if (r > 1.0) r = 2.0 - r;       // cos(pi (2 - r)) = cos(pi r)
  const bool negative = r > 0.5;  // cos(pi (1 - r)) = -cos(pi r)
  if (negative) r = 1.0 - r;
  const bool use_sin = r > 0.25;  // cos(pi r) = sin(pi (1/2 - r))
  if (use_sin) r = 0.5 - r;
  const double angle = 3.141592653589793 * r;
  const double z = angle * angle;
  double series = 1.0;
  for (int n = use_sin ? 19 : 18; n >= 2; n -= 2) series = 1.0 - z / (n * (n - 1)) * series;
  const double value = use_sin ? angle * series : series;
  return negative ? -value : value;
}

/// base^exponent for base >= 0: by multiplications where the exponent is a whole number, else e^(exponent ln base).
GRADSTEP_INLINE double power(double base, double exponent) {
  if (exponent >= 0.0 && exponent <= 9007199254740992.0) {
    const auto whole = static_cast<std::int64_t>(exponent);  // floor() would be a call at some levels
    if (exponent == static_cast<double>(whole)) return power(base, whole);
  }
  if (base == 0.0) return exponent > 0.0 ? 0.0 : HUGE_VAL;
  return gradstep::exp(exponent * gradstep::log(base));
}

}  // namespace
}  // namespace gradstep
