#include "checks.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "levels.hpp"

namespace gradstep {
namespace {

constexpr Hyper weight_decay_hyper{"weight_decay", Range::non_negative};
constexpr Hyper grad_scale_hyper{"grad_scale", Range::positive};
constexpr Hyper clip_value_hyper{"clip_value", Range::positive};

struct Interval {
  double least, most;
};

// Of each Range, the numbers that belong to it.
constexpr double largest = std::numeric_limits<double>::max(), tiniest = std::numeric_limits<double>::denorm_min();
constexpr Interval intervals[] = {{0, largest}, {tiniest, largest}, {0, 0x1.fffffffffffffp-1}, {0, 1},
                                  {0, 1},       {-largest, 0}};

bool within(Range range, double x) {
  const Interval interval = intervals[static_cast<int>(range)];
  return interval.least <= x && x <= interval.most && (range != Range::flag || x == 0 || x == 1);
}

// Apart from the checks, which nearly always pass, and are short so.
[[noreturn]] void refuse(const Hyper& hyper, double x) {
  const std::string expected = std::string(hyper.name) + " must be " + describe(hyper.range);
  if (!within(hyper.range, x)) throw std::invalid_argument(expected + ", got " + number_text(x));
  throw std::invalid_argument(expected + " in float32 too, which rounds " + number_text(x) + " to " +
                              number_text(static_cast<float>(x)));
}

}  // namespace

int find_rule(const char* name) {
  const Table& table = baseline::table();
  for (int i = 0; i < table.size; ++i)
    if (std::strcmp(name, table.entries[i]->spec.name) == 0) return i;
  return -1;
}

int hyper_count(const Spec& spec) {
  return static_cast<int>(std::find_if(spec.hyper, spec.hyper + max_hyper, [](Hyper h) { return !h.name; }) -
                          spec.hyper);
}

int state_count(const Spec& spec) {
  return static_cast<int>(std::find_if(spec.states, spec.states + max_states, [](State s) { return !s.name; }) -
                          spec.states);
}

int elementwise_count(const Spec& spec) { return spec.row_factor < 0 ? state_count(spec) : spec.row_factor; }

bool is_gradient(const Spec& spec, int state) { return state + spec.gradients >= state_count(spec); }

Storage arithmetic_of(Storage param) { return param == Storage::float64 ? Storage::float64 : Storage::float32; }

bool gradient_fits(Storage grad, Storage param) {
  return !is_blocked(grad) && (grad != Storage::float64 || param == Storage::float64);
}

bool state_fits(const State& state, Storage storage, Storage param) {
  if (param == Storage::float64) return is_wide(storage);
  return is_blocked(storage) ? storage == in_8_bits(state) : storage != Storage::float64;
}

Storage in_8_bits(const State& state) { return state.never_negative ? Storage::uint8 : Storage::int8; }

bool is_blocked(Storage storage) { return storage == Storage::int8 || storage == Storage::uint8; }

std::int64_t blocks_of(std::int64_t size) { return (size + state_block - 1) / state_block; }

bool is_wide(Storage storage) { return storage == Storage::float64 || storage == Storage::float32; }

const char* name_of(Storage storage) {
  constexpr const char* names[storage_count] = {"float64", "float32", "bfloat16", "float16", "int8", "uint8"};
  return names[static_cast<int>(storage)];
}

// The fewest digits that name no other number, which std::to_chars finds; no locale has a say.
std::string number_text(double x) {
  if (!std::isfinite(x)) return std::isnan(x) ? "nan" : x > 0 ? "inf" : "-inf";
  char digits[32];
  const double size = std::fabs(x);
  const bool plain = size == 0 || (size >= 1e-4 && size < 1e16);
  const auto format = plain ? std::chars_format::fixed : std::chars_format::scientific;
  std::string text(digits, std::to_chars(digits, digits + sizeof digits, x, format).ptr);
  if (plain && text.find('.') == std::string::npos) text += ".0";
  return text;
}

const char* describe(Range range) {
  switch (range) {
    case Range::non_negative: return "at least 0 and finite";
    case Range::positive: return "above 0 and finite";
    case Range::below_one: return "in [0, 1)";
    case Range::up_to_one: return "in [0, 1]";
    case Range::flag: return "0 or 1";
    case Range::non_positive: return "at most 0 and finite";
  }
  return "";
}

void check_hyper(const Hyper& hyper, double x, bool single_precision) {
  if (!within(hyper.range, x) || (single_precision && !within(hyper.range, static_cast<float>(x)))) refuse(hyper, x);
}

void check_hypers(const Spec& spec, const double* values, std::int64_t count, double weight_decay,
                  bool single_precision) {
  const int expected = hyper_count(spec);
  if (count != expected)
    throw std::invalid_argument(std::string(spec.name) + " takes " + std::to_string(expected) +
                                " hyper-parameters, got " + std::to_string(count));
  for (std::int64_t i = 0; i < count; ++i) check_hyper(spec.hyper[i], values[i], single_precision);
  check_hyper(weight_decay_hyper, weight_decay, single_precision);
}

const Hyper* find_hyper(const Spec& spec, const std::string& name) {
  if (name == weight_decay_hyper.name) return &weight_decay_hyper;
  const Hyper* const end = spec.hyper + hyper_count(spec);
  const Hyper* found = std::find_if(spec.hyper, end, [&](const Hyper& hyper) { return name == hyper.name; });
  return found == end ? nullptr : found;
}

void check_integer(const char* name, std::int64_t x, std::int64_t least, std::int64_t most) {
  const auto shown = [](std::int64_t limit) { return limit == max_integer ? "2**53" : std::to_string(limit); };
  if (x < least)
    throw std::invalid_argument(std::string(name) + " must be at least " + shown(least) + ", got " + std::to_string(x));
  if (x > most)
    throw std::invalid_argument(std::string(name) + " must be at most " + shown(most) + ", got " + std::to_string(x));
}

void check_treatment(const Treatment& treatment, bool single_precision) {
  check_hyper(grad_scale_hyper, treatment.grad_scale, single_precision);
  // Infinity only measures.
  if (treatment.clip_norm && !(*treatment.clip_norm > 0))
    throw std::invalid_argument("clip_norm must be above 0, got " + number_text(*treatment.clip_norm));
  if (treatment.clip_value) check_hyper(clip_value_hyper, *treatment.clip_value, single_precision);
}

}  // namespace gradstep
