// What can be wrong with the numbers of a step, in the words that Python and C share. All that is wrong throws
// std::invalid_argument, naming the argument and showing the value.
#pragma once

#include <optional>
#include <string>

#include "kernel.hpp"

namespace gradstep {

/// The place of a rule in the table of every level; -1: no rule has this name.
int find_rule(const char* name);

int hyper_count(const Spec& spec);
int state_count(const Spec& spec);
/// Of those, the ones with an element per parameter; factors of matrices come after them.
int elementwise_count(const Spec& spec);

/// Whether a state is a gradient, which steps only read.
bool is_gradient(const Spec& spec, int state);

/// What the arithmetic beside a parameter is, and what may stand there: gradients of no more bits, and states of no
/// more bits either and of no fewer than those of float32 beside float64. Those in 8 bits have a sign or not, as the
/// rule says.
Storage arithmetic_of(Storage param);
bool gradient_fits(Storage grad, Storage param);
bool state_fits(const State& state, Storage storage, Storage param);

/// What 8 bits are, for a state.
Storage in_8_bits(const State& state);
bool is_blocked(Storage storage);

/// How many blocks so many numbers take in 8 bits.
std::int64_t blocks_of(std::int64_t size);

/// Whether these are numbers that an arithmetic has.
bool is_wide(Storage storage);

/// As NumPy calls it.
const char* name_of(Storage storage);

/// A number as Python prints it.
std::string number_text(double x);

/// In words, the values that belong to a range.
const char* describe(Range range);

/// `single_precision`: the value must belong to the range after rounding to float32, too.
void check_hyper(const Hyper& hyper, double x, bool single_precision);

/// The same for all of a rule, in its order, and for weight_decay.
void check_hypers(const Spec& spec, const double* values, std::int64_t count, double weight_decay,
                  bool single_precision);

/// The range of a hyper-parameter of the rule, or of weight_decay; null: it has none of this name.
const Hyper* find_hyper(const Spec& spec, const std::string& name);

void check_integer(const char* name, std::int64_t x, std::int64_t least, std::int64_t most);

/// Whole numbers up to here are exact in double.
constexpr std::int64_t max_integer = std::int64_t{1} << 53;

/// What a step does to the gradients before its rule, and to their memory after it.
struct Treatment {
  double grad_scale = 1;
  std::optional<double> clip_norm, clip_value;
  bool zero_grad = false;
};

void check_treatment(const Treatment& treatment, bool single_precision);

}  // namespace gradstep
