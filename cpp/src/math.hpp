// Mathematics that has the same bits on every processor.
//
// The C library picks other variants of pow, exp, log and cos for processors with FMA, and their last bits differ.
// These functions are made of IEEE + - * / alone, so they do not. Everything is in an anonymous namespace: each
// object keeps its own copy, compiled for its own level.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

namespace gradstep {
namespace {

// The C functions and not std::sqrt, whose template code would be shared between levels.
[[maybe_unused]] inline float root(float x) { return ::sqrtf(x); }
[[maybe_unused]] inline double root(double x) { return ::sqrt(x); }

/// base^n for n >= 0 by repeated squaring. Relative error below n * 2^-53.
[[maybe_unused]] inline double power(double base, std::int64_t n) {
  double result = 1.0;
  for (; n > 0; n >>= 1) {
    if (n & 1) result *= base;
    base *= base;
  }
  return result;
}

/// 2^k for -1022 <= k <= 1023.
inline double power_of_two(std::int64_t k) {
  const std::uint64_t bits = static_cast<std::uint64_t>(k + 1023) << 52;
  double result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// ln 2 in two parts; the upper one has 21 trailing zero bits, so that k * ln2_high is exact for |k| < 2^20.
constexpr double ln2_high = 6.93147180369123816490e-01;
constexpr double ln2_low = 1.90821492927058770002e-10;

/// e^x: x = k ln 2 + r with |r| <= ln(2)/2, then the Taylor series of e^r. Error below 1 ulp (tested bound: 2).
[[maybe_unused]] inline double exp(double x) {
  if (x != x) return x;
  if (x > 709.782712893384) return HUGE_VAL;
  if (x < -745.1332191019412) return 0.0;
  const auto k = static_cast<std::int64_t>(x * 1.4426950408889634 + (x < 0 ? -0.5 : 0.5));
  const double r = (x - static_cast<double>(k) * ln2_high) - static_cast<double>(k) * ln2_low;
  double series = 0.0;  // (e^r - 1 - r) / r^2
  for (int n = 14; n >= 2; --n) {
    constexpr double factorial[] = {1,     1,      2,       6,        24,        120,        720,          5040,
                                    40320, 362880, 3628800, 39916800, 479001600, 6227020800, 87178291200.0};
    series = series * r + 1.0 / factorial[n];
  }
  const double value = 1.0 + (r + r * r * series);
  // Two factors, because 2^k alone can lie outside the normal range where the result does not.
  const std::int64_t half = k / 2;
  return value * power_of_two(half) * power_of_two(k - half);
}

/// ln x: x = 2^k (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2), then the series of 2 atanh(s), s = f / (2 + f).
/// Error below 1 ulp (tested bound: 2).
[[maybe_unused]] inline double log(double x) {
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
[[maybe_unused]] inline double power(double base, double exponent) {
  if (exponent >= 0.0 && exponent <= 9007199254740992.0 && exponent == ::floor(exponent))
    return power(base, static_cast<std::int64_t>(exponent));
  if (base == 0.0) return exponent > 0.0 ? 0.0 : HUGE_VAL;
  return gradstep::exp(exponent * gradstep::log(base));
}

}  // namespace
}  // namespace gradstep
