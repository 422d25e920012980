// Finite sums of linear models: the data that the levels, the threads and the bindings share.
//
//   F(w, b) = (1 / S) sum_i s_i loss(x_i . w + b, y_i) + (alpha / 2) |w|^2 + l1 |w|_1,   S = sum_i s_i
//
// The gradient of a row's loss is a number per output, its slope, times the row. So a table of gradients is a table of
// slopes. Like kernel.hpp, this file holds plain data and emits no function.
#pragma once

#include <cstdint>

namespace gradstep {

enum class Loss { least_squares, huber, logistic, softmax, squared_hinge };

/// SAGA and SAG write the slope of the row that they draw into the table; SVRG leaves the table as it is.
enum class Variant { sag, saga, svrg };

/// A dot product of dense rows is summed in so many lanes, the end of a row filled up with zeros. That is part of the
/// definition of the result (linear/_reference.py has it too), and weights and sums have room for it.
constexpr int row_lanes = 8;

/// Scores and slopes of one row have room for a multiple of this many outputs.
constexpr int output_lanes = 8;

/// Rows as they lie in memory. A dense row is read up to the next multiple of row_lanes beyond its end, which is inside
/// the array for all but the last few rows; `tails` has copies of these.
struct Rows {
  std::int64_t count, features;
  const void* values;
  std::int64_t stride;       // dense: elements from one row to the next
  std::int64_t tails_begin;  // dense: the first row that is read from `tails`, whose stride is a multiple of row_lanes
  const void* tails;
  const void* mean;     // dense: what is subtracted from every row, of the type of the values, with all lanes
  const void* offsets;  // sparse: where the rows begin among the values, and where the last one ends
  const void* columns;  // sparse: of each value, increasing within a row
};

struct Problem {
  Rows rows;
  Loss loss;
  double delta;           // Huber's
  std::int64_t outputs;   // scores per row
  const double* targets;  // the numbers of a row, or its label
  std::int64_t targets_per_row;
  const double* weights;  // s_i; null: all 1
  double total_weight;    // S
};

/// What descent moves. A dense model has a row per output, of `features` rounded up to row_lanes; a sparse one has a
/// row per feature.
struct Model {
  double* coef;
  double* intercept;      // per output
  double* table;          // the last slope of each row and output
  double* sum;            // sum_i s_i slope_i x_i, in the layout of coef
  double* intercept_sum;  // sum_i s_i slope_i
};

/// Rows are drawn with probabilities proportional to their weights, by Walker's alias method; the n-th draw is a
/// function of the seed and n.
struct Draws {
  std::uint64_t seed, first;
  std::int64_t count;
  const double* keep;          // the probability of a row to be kept once it is hit; null: all 1
  const std::int64_t* others;  // taken instead
};

/// What every step does to the weights of a sparse column, whatever the row: they shrink and follow the sum.
struct alignas(16) ColumnPull {
  double shrink, of_sum;
};

struct Descent {
  Variant variant;
  double lr, l2, l1;
  bool fit_intercept;
  const ColumnPull* pulls;  // sparse: of each column
};

/// Room for the scores and slopes of one row, each with room for output_lanes, and for two dense rows.
struct Scratch {
  double* scores;
  double* next_scores;
  double* slopes;
  double* row;
  double* next_row;
};

/// The loops over rows of one type of values and one layout, from row `begin` to `end`.
struct LinearKernels {
  /// Adds s_i x_i to `sums` and s_i x_i^2 to `squares`, a place per feature; sparse rows add s_i to `coverage` too.
  void (*add_columns)(const Problem&, std::int64_t begin, std::int64_t end, double* sums, double* squares,
                      double* coverage) noexcept;
  /// The largest squared norm of a row, the mean subtracted.
  double (*largest_norm)(const Problem&, std::int64_t begin, std::int64_t end) noexcept;
  /// Writes the slopes of the rows to the table, unless that is null, and adds their gradients to `sum` and
  /// `intercept_sum`.
  void (*add_gradient)(const Problem&, const Model&, const Scratch&, std::int64_t begin, std::int64_t end, double* sum,
                       double* intercept_sum) noexcept;
  /// Takes a step at each row drawn.
  void (*descend)(const Problem&, const Model&, const Scratch&, const Draws&, const Descent&) noexcept;
};

/// The layouts of rows.
enum class Layout { dense, sparse32, sparse64 };
constexpr int layout_count = 3;

}  // namespace gradstep
