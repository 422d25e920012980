// What the rules, the levels, the threads and the bindings share: plain data, no code.
//
// Objects compiled for different instruction sets include this file, so nothing in it may emit a function
// (see CONTRIBUTING.md, "The one-definition trap").
#pragma once

#include <cstdint>

#include "linear.hpp"

namespace gradstep {

constexpr int max_hyper = 8;
constexpr int max_states = 4;

/// How memory holds the numbers of a buffer. The arithmetic of an array is float64 where its parameter is, else
/// float32. States alone may be in 8 bits: int8, or uint8 where they are never negative.
enum class Storage : std::uint8_t { float64, float32, bfloat16, float16, int8, uint8 };
constexpr int storage_count = 6;
constexpr std::int64_t storage_bytes[storage_count] = {8, 4, 2, 2, 1, 1};

/// Numbers in 8 bits are held in blocks: a byte for the exponent that they share, and one for each of so many. The last
/// block is as large as the others, and filled up with zeros.
constexpr std::int64_t state_block = 256, held_block = 1 + state_block;

/// The values that a hyper-parameter may take. Infinity and NaN never belong to them.
enum class Range { non_negative, positive, below_one, up_to_one, flag, non_positive };

struct Hyper {
  const char* name;
  Range range;
};

/// A state of a rule. Where it is never negative, 8 bits have no sign.
struct State {
  const char* name = nullptr;
  bool never_negative = false;

  constexpr State() = default;
  constexpr State(const char* name, bool never_negative = false) : name(name), never_negative(never_negative) {}
};

/// Coupled weight decay joins the gradient, decoupled weight decay shrinks the parameter. Some rules have it at a place
/// of their own, and are given it when their scalars are folded.
enum class Decay { coupled, decoupled, in_rule };

/// What the rest of the program knows of a rule. Every rule's first hyper-parameter is `lr`.
struct Spec {
  const char* name;
  Hyper hyper[max_hyper];    // ends at the first without a name
  State states[max_states];  // ends at the first without a name
  Decay decay = Decay::coupled;
  int row_state = -1;        // the state that has a row per sample or batch, of which a step updates one; -1: none
  int row_sum = -1;          // the state that is the sum of those rows; -1: none
  int second_gradient = -1;  // the state whose arrays come with each step, as the gradients do; -1: none
  int gradients = 0;         // so many of the last states are gradients: multiplied as the first one is, and only read
  bool as_it_is = false;     // whether those are no gradients but made of them: only read, and not multiplied
  bool has_trust = false;    // whether each array has a factor of its own, its trust ratio
  int row_factor = -1;       // the state that has a factor per row of a matrix, the next one per column; -1: none
  int streams = 0;           // how many arrays a step reads and writes; 0: the gradient once, all it updates twice
};

/// Whether memory may hold the buffers in fewer bits than the arithmetic has: where each element has its own, all of
/// which are read and written at once.
[[maybe_unused]] static constexpr bool takes_any_storage(const Spec& spec) {
  return !spec.has_trust && spec.row_factor < 0 && spec.row_state < 0 && spec.gradients == 0;
}

/// The scalars of one step, all in double.
struct Step {
  std::int64_t t;  // from 1
  double weight_decay;
  bool maximize;
  double grad_scale;  // the gradient is first multiplied by this,
  double clip;        // then by this, which clipping by the norm makes less than 1,
  double clip_value;  // then kept within plus and minus this
  bool zero_grad;
  bool fresh_row;           // the row holds no gradient yet: it counts as 0, whatever is there
  bool flushes;             // denormal numbers count as 0
  double hyper[max_hyper];  // in the order of Spec::hyper
};

/// The matrices along the last two axes of an array; no columns: it is no matrix.
struct Matrices {
  std::int64_t rows, columns;
};

/// A part of the rows and columns of one of them; rows are counted through all.
struct Tile {
  std::int64_t row, rows, column, columns;
};
constexpr std::int64_t tile_rows = 64, tile_columns = 1024;

/// The memory of one parameter array; all of it holds the same number of elements of one type.
struct Buffers {
  void* param;
  void* grad;  // written to only where Step::zero_grad says so
  void* states[max_states];
  double trust = 1;                   // the array's trust ratio, for rules that have one
  Matrices matrices = {0, 0};         // what it consists of, for rules that factor their second moments
  const void* row_factors = nullptr;  // the factors of the rows of those matrices, over the mean of each
};

/// A norm is summed in blocks of this many elements, each from the start of its array, and a block in this many lanes.
/// Both are part of the definition of the result (reference.py has them too).
constexpr std::int64_t block_size = 4096;
constexpr int lane_count = 32;

/// Room for a rule whose scalars have been folded into the constants of one step.
struct Constants {
  alignas(16) unsigned char bytes[256];
};

/// Sums of squares over some elements: of the parameter, and of what its trust ratio compares it with.
struct Squares {
  double param, direction;
};

/// How numbers become 16 or 8 bits: the nearest one, or one of the two neighbours by chance. Two elements of an
/// array, 2 i and 2 i + 1, share 32 bits of chance, which storage.hpp makes of a key and of a number that begins with
/// `weyl` and grows by weyl_step from pair to pair.
struct Rounding {
  bool stochastic;
  std::uint32_t weyl, key;
};
constexpr std::uint32_t weyl_step = 0x9E3779B1;

/// A sweep over an even number of elements, at most stored_piece, with the chances of their pairs.
using SweepInPlace = void (*)(const Constants&, const Buffers&, std::int64_t begin, std::int64_t size,
                              const std::uint16_t* chances) noexcept;
constexpr std::int64_t stored_piece = 512;

/// A rule compiled for one element type and one level. Where it has trust ratios, `measure` goes over each block of at
/// most block_size elements first, and brings the states up to date; `trust` makes a ratio of the two norms.
struct Kernel {
  void (*fold)(const Step&, Constants&) noexcept;
  void (*sweep)(const Constants&, const Buffers&, std::int64_t begin, std::int64_t end) noexcept;
  Squares (*measure)(const Constants&, const Buffers&, std::int64_t begin, std::int64_t end) noexcept = nullptr;
  double (*trust)(const Constants&, double param_norm, double direction_norm, std::int64_t size) noexcept = nullptr;
  // Where second moments are factored: sums of squares of the gradients along the rows of a tile, written `stride`
  // apart, and down its columns, which begin at 0; and all of those of one matrix, tile after tile, taken into its
  // factors. `row_factors` is that of Buffers.
  void (*sum_tile)(const Constants&, const Buffers&, const Tile&, double* row_sums, std::int64_t stride,
                   double* column_sums) noexcept = nullptr;
  void (*take_factors)(const Constants&, const Buffers&, std::int64_t matrix, const double* row_sums,
                       std::int64_t tiles_across, double* column_sums, std::int64_t tiles_down,
                       void* row_factors) noexcept = nullptr;
  // As sweep, where memory holds the states, or everything, as bfloat16, which is rounded by chance; and beside states
  // in 8 bits, of whole blocks in which all numbers are finite. Beside float32, no chances: to the nearest. A level may
  // have none: chunks of float32 then give the same bits.
  SweepInPlace sweep_bfloat16_states = nullptr, sweep_bfloat16 = nullptr;
  SweepInPlace sweep_8_bit_states = nullptr, sweep_bfloat16_8_bit_states = nullptr;
};

/// A rule as one level has it.
struct Entry {
  Spec spec;
  Kernel float32;
  Kernel float64;
};

/// The sum of squares of one block of at most block_size gradients, each multiplied by `scale` in its own type and then
/// by `range`, a power of two, in double.
using SumOfSquares = double (*)(const void* grads, std::int64_t size, double scale, double range) noexcept;

/// Adds to `sums`, in double, some rows of one size, at most rows_at_once, one after the other, each times its weight.
using AddRows = void (*)(double* sums, const void* const* rows, const double* weights, int count,
                         std::int64_t size) noexcept;
constexpr int rows_at_once = 8;

/// From what memory holds to numbers as the arithmetic has them.
using Load = void (*)(const void* memory, void* numbers, std::int64_t size) noexcept;

/// And back: to the nearest without chances. `buffer` is 0 for the parameter, then the place of a state: each makes
/// bits of its own of the chances.
using Store = void (*)(const void* numbers, void* memory, std::int64_t size, const std::uint16_t* chances,
                       int buffer) noexcept;

/// In the order of Storage; null where the arithmetic does not go with it. Of what is in blocks, whole ones are loaded
/// and stored.
struct Converters {
  Load load[storage_count];
  Store store[storage_count];
};

/// Between float32 and two parts of 16 bits: the nearest bfloat16, and by how many units of its own last bit the number
/// differs. NaN loses what it carries.
using Join = void (*)(const std::uint16_t* high, const std::uint16_t* low, float* numbers, std::int64_t size) noexcept;
using Split = void (*)(const float* numbers, std::uint16_t* high, std::uint16_t* low, std::int64_t size) noexcept;

/// Draws 32 bits of chance for each of so many pairs.
using Draw = void (*)(const Rounding&, std::int64_t pairs, std::uint16_t* chances) noexcept;

/// All of one level, the rules in the order of rules.hpp.
struct Table {
  const Entry* const* entries;
  int size;
  SumOfSquares float32_squares;
  SumOfSquares float64_squares;
  AddRows float32_add_rows;
  AddRows float64_add_rows;
  Converters float32_converters;
  Converters float64_converters;
  Draw draw;
  Join join;
  Split split;
  Kernel float32_streams[max_states + 1];  // by the number of states; nothing to fold
  const LinearKernels* float32_rows;       // by Layout
  const LinearKernels* float64_rows;
};

}  // namespace gradstep
