// Descent along the rows of a linear model: SAG, SAGA and SVRG over a table of slopes.
//
// Weights, sums and slopes are float64, whatever the rows are: the sum of all slopes' gradients would drift in float32,
// and weights could not follow steps smaller than their last place.
//
// For a row x with the slope c where the table has y, of weight s, with A the total weight and d the sum:
//   gradient = k (c - y) x + d / A           k = s / A (SAG), 1 (SAGA, SVRG)
//   w = prox((1 - lr l2) w - lr gradient)    prox: soft-thresholding by lr l1
//   d = d + s (c - y) x, y = c               (not SVRG)
//
// Schmidt, Le Roux and Bach 2017 (SAG); Defazio, Bach and Lacoste-Julien 2014 (SAGA); Johnson and Zhang 2013 (SVRG);
// Pedregosa, Leblond and Lacoste-Julien 2017, section 2 (sparse rows).
#include <type_traits>

#include "compiler.hpp"
#include "level.hpp"
#include "losses.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

inline double weight_of(const Problem& problem, std::int64_t row) {
  return problem.weights ? problem.weights[row] : 1.0;
}

inline const double* target_of(const Problem& problem, std::int64_t row) {
  return problem.targets + row * problem.targets_per_row;
}

// The n-th row drawn. The hash is splitmix64's (Steele, Lea and Flood 2014): its upper half chooses a row, its lower
// half whether to keep it.
inline std::int64_t draw(const Draws& draws, std::int64_t rows, std::int64_t n) {
  std::uint64_t hash = draws.seed + (draws.first + static_cast<std::uint64_t>(n) + 1) * 0x9E3779B97F4A7C15ULL;
  hash = (hash ^ (hash >> 30)) * 0xBF58476D1CE4E5B9ULL;
  hash = (hash ^ (hash >> 27)) * 0x94D049BB133111EBULL;
  hash ^= hash >> 31;
  const auto row = static_cast<std::int64_t>(((hash >> 32) * static_cast<std::uint64_t>(rows)) >> 32);
  if (!draws.keep) return row;
  const double chance = static_cast<double>(static_cast<std::int64_t>(hash & 0xFFFFFFFFULL)) * 0x1p-32;
  return chance < draws.keep[row] ? row : draws.others[row];
}

// Dense rows are fetched so many bytes ahead: less does not hide the latency of memory, more fills the cache.
constexpr std::int64_t bytes_ahead = 1500;

constexpr std::int64_t rows_ahead(std::int64_t row_bytes) { return 1 + bytes_ahead / row_bytes; }

// The rows drawn, a batch at a time, and beyond it as far as rows are looked at in advance.
struct Order {
  static constexpr std::int64_t batch = 256, most_ahead = 1 + rows_ahead(row_lanes * sizeof(float));
  const Draws& draws;
  const std::int64_t count, ahead;
  std::int64_t begin = 0;
  std::int64_t rows[batch + most_ahead];

  Order(const Draws& draws, std::int64_t count, std::int64_t ahead) : draws(draws), count(count), ahead(ahead) {
    fill();
  }

  void fill() {
    for (std::int64_t n = 0; n < batch + ahead; ++n) rows[n] = draw(draws, count, begin + n);
  }

  // The n-th row and those after it; n never decreases.
  const std::int64_t* from(std::int64_t n) {
    if (n == begin + batch) {
      begin = n;
      fill();
    }
    return rows + (n - begin);
  }
};

// NaN is larger than all.
inline double larger(double most, double x) { return x <= most || most != most ? most : x; }

inline double soft_threshold(double x, double threshold) {
  const double above = x - threshold, below = x + threshold;
  const double kept = below < 0.0 ? below : 0.0;
  return above > 0.0 ? above : (x != x ? x : kept);
}

// What is the same for all steps of a descent.
struct Pace {
  bool moves_table;    // not SVRG
  bool weighs_change;  // SAG: the change counts with the row's share of the total weight
  bool fits_intercept;
  double lr, of_sum, inverse_total;

  Pace(const Problem& problem, const Descent& descent)
      : moves_table(descent.variant != Variant::svrg),
        weighs_change(descent.variant == Variant::sag),
        fits_intercept(descent.fit_intercept),
        lr(descent.lr),
        of_sum(descent.lr / problem.total_weight),
        inverse_total(1.0 / problem.total_weight) {}
};

// What a step at one row multiplies the row with: for the sum, and for the weights.
struct Factors {
  double to_sum, to_weights;
};

// What every step does to all weights of dense rows: they shrink, follow the sum, and are thresholded.
struct Pull {
  double shrink, of_sum, threshold;
};

// Moves the entry of the table and the intercept of one output, and gives the factors for its weights.
inline Factors step_output(const Model& model, const Pace pace, double weight, std::int64_t output, double slope,
                           double& entry) {
  const double change = slope - entry;
  const double rate = pace.weighs_change ? pace.lr * (weight * pace.inverse_total) : pace.lr;
  const Factors factors{pace.moves_table ? weight * change : 0.0, rate * change};
  entry = pace.moves_table ? slope : entry;
  if (pace.fits_intercept) {
    const double sum = model.intercept_sum[output];
    model.intercept[output] -= factors.to_weights + pace.of_sum * sum;
    model.intercept_sum[output] = sum + factors.to_sum;
  }
  return factors;
}

// Forms the slopes at the scores of a row and writes them to the table, if there is one. They are left weighted.
inline void enter_slopes(const Problem& problem, const Model& model, const Scratch& scratch, std::int64_t row,
                         double* intercept_sum) {
  const double weight = weight_of(problem, row);
  slopes_of<false>(problem, scratch.scores, target_of(problem, row), scratch.slopes);
  for (std::int64_t k = 0; k < problem.outputs; ++k) {
    if (model.table) model.table[row * problem.outputs + k] = scratch.slopes[k];
    scratch.slopes[k] *= weight;
    intercept_sum[k] += scratch.slopes[k];
  }
}

// Dense rows ----------------------------------------------------------------------------------------------------------

template <class T>
inline const T* dense_row(const Rows& rows, std::int64_t i) {
  if (i < rows.tails_begin) return static_cast<const T*>(rows.values) + i * rows.stride;
  return static_cast<const T*>(rows.tails) + (i - rows.tails_begin) * round_up(rows.features, row_lanes);
}

// A row where it lies. Each number is centred anew whenever it is read, which costs time; lanes beyond the end are 0.
template <class T>
struct InPlace {
  static constexpr bool has_all_lanes = false;
  const T *x, *mean;

  GRADSTEP_INLINE double value(std::int64_t j, bool inside) const {
    const T difference = x[j] - mean[j];
    return static_cast<double>(inside ? difference : T(0));
  }
};

// A centred copy of a row, with zeros in the lanes beyond its end. It costs room in the cache.
struct Copied {
  static constexpr bool has_all_lanes = true;
  const double* x;

  GRADSTEP_INLINE double value(std::int64_t j, bool) const { return x[j]; }
};

template <class T>
GRADSTEP_INLINE InPlace<T> in_place(const Rows& rows, std::int64_t i) {
  return {dense_row<T>(rows, i), static_cast<const T*>(rows.mean)};
}

// The loops over columns are written once for a block of row_lanes. `whole`: all lanes are inside the row.
template <bool whole, class Row>
GRADSTEP_INLINE void copy_block(const Row row, std::int64_t j, int inside, double* copy) {
#pragma omp simd
  for (int lane = 0; lane < row_lanes; ++lane) copy[j + lane] = row.value(j + lane, whole || lane < inside);
}

template <bool whole, class Row>
GRADSTEP_INLINE void dot_block(const Row row, std::int64_t j, int inside, const double* w, double* lanes) {
#pragma omp simd
  for (int lane = 0; lane < row_lanes; ++lane) lanes[lane] += row.value(j + lane, whole || lane < inside) * w[j + lane];
}

template <bool whole, class Row>
GRADSTEP_INLINE void norm_block(const Row row, std::int64_t j, int inside, double* lanes) {
#pragma omp simd
  for (int lane = 0; lane < row_lanes; ++lane) {
    const double value = row.value(j + lane, whole || lane < inside);
    lanes[lane] += value * value;
  }
}

template <bool whole, class Row>
GRADSTEP_INLINE void add_block(const Row row, std::int64_t j, int inside, double factor, double* sum) {
#pragma omp simd
  for (int lane = 0; lane < row_lanes; ++lane) sum[j + lane] += factor * row.value(j + lane, whole || lane < inside);
}

template <bool whole, class Row>
GRADSTEP_INLINE void moments_block(const Row row, std::int64_t j, int inside, double weight, double* sums,
                                   double* squares) {
#pragma omp simd
  for (int lane = 0; lane < row_lanes; ++lane) {
    const double value = row.value(j + lane, whole || lane < inside);
    sums[j + lane] += weight * value;
    squares[j + lane] += weight * (value * value);
  }
}

// A step at a row, and the dot product of the weights that it leaves with the next row, in one pass.
template <bool whole, bool prox, class Row>
GRADSTEP_INLINE void step_block(const Row row, const Row next, std::int64_t j, int inside, const Factors factors,
                                const Pull pull, double* w, double* sum, double* lanes) {
#pragma omp simd
  for (int lane = 0; lane < row_lanes; ++lane) {
    const std::int64_t place = j + lane;
    const double value = row.value(place, whole || lane < inside);
    const double next_value = next.value(place, whole || lane < inside);
    const double moved = pull.shrink * w[place] - (factors.to_weights * value + pull.of_sum * sum[place]);
    const double kept = prox ? soft_threshold(moved, pull.threshold) : moved;
    sum[place] += factors.to_sum * value;
    w[place] = kept;
    lanes[lane] += next_value * kept;
  }
}

GRADSTEP_INLINE double add_lanes(const double* lanes) {
  static_assert(row_lanes == 8, "three rounds");
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// Where the blocks of which all lanes may be read end.
template <class Row>
constexpr std::int64_t end_of_whole(std::int64_t features) {
  return Row::has_all_lanes ? round_up(features, row_lanes) : features / row_lanes * row_lanes;
}

template <class Row>
GRADSTEP_INLINE void copy(const Row row, std::int64_t features, double* to) {
  std::int64_t j = 0;
  for (; j < end_of_whole<Row>(features); j += row_lanes) copy_block<true>(row, j, row_lanes, to);
  if (j < features) copy_block<false>(row, j, static_cast<int>(features - j), to);
}

template <class Row>
GRADSTEP_INLINE double dot(const Row row, std::int64_t features, const double* w) {
  double lanes[row_lanes] = {};
  std::int64_t j = 0;
  for (; j < end_of_whole<Row>(features); j += row_lanes) dot_block<true>(row, j, row_lanes, w, lanes);
  if (j < features) dot_block<false>(row, j, static_cast<int>(features - j), w, lanes);
  return add_lanes(lanes);
}

template <class Row>
GRADSTEP_INLINE double squared_norm(const Row row, std::int64_t features) {
  double lanes[row_lanes] = {};
  std::int64_t j = 0;
  for (; j < end_of_whole<Row>(features); j += row_lanes) norm_block<true>(row, j, row_lanes, lanes);
  if (j < features) norm_block<false>(row, j, static_cast<int>(features - j), lanes);
  return add_lanes(lanes);
}

template <class Row>
GRADSTEP_INLINE void add(const Row row, std::int64_t features, double factor, double* sum) {
  std::int64_t j = 0;
  for (; j < end_of_whole<Row>(features); j += row_lanes) add_block<true>(row, j, row_lanes, factor, sum);
  if (j < features) add_block<false>(row, j, static_cast<int>(features - j), factor, sum);
}

template <class Row>
GRADSTEP_INLINE void add_moments(const Row row, std::int64_t features, double weight, double* sums, double* squares) {
  std::int64_t j = 0;
  for (; j < end_of_whole<Row>(features); j += row_lanes) moments_block<true>(row, j, row_lanes, weight, sums, squares);
  if (j < features) moments_block<false>(row, j, static_cast<int>(features - j), weight, sums, squares);
}

// A long row that is read in place is fetched while the step before it passes over the columns.
template <bool prox, class Row, class T>
GRADSTEP_INLINE double step_row(const Row row, const Row next, const T* ahead, std::int64_t features,
                                const Factors factors, const Pull pull, double* w, double* sum) {
  double lanes[row_lanes] = {};
  std::int64_t j = 0;
  for (; j < end_of_whole<Row>(features); j += row_lanes) {
    if (ahead) GRADSTEP_PREFETCH(ahead + j);
    step_block<true, prox>(row, next, j, row_lanes, factors, pull, w, sum, lanes);
  }
  if (j < features) step_block<false, prox>(row, next, j, static_cast<int>(features - j), factors, pull, w, sum, lanes);
  return add_lanes(lanes);
}

template <class T>
GRADSTEP_NOINLINE void add_dense_columns(const Problem& problem, std::int64_t begin, std::int64_t end, double* sums,
                                         double* squares, double*) noexcept {
  for (std::int64_t i = begin; i < end; ++i)
    add_moments(in_place<T>(problem.rows, i), problem.rows.features, weight_of(problem, i), sums, squares);
}

template <class T>
GRADSTEP_NOINLINE double largest_dense_norm(const Problem& problem, std::int64_t begin, std::int64_t end) noexcept {
  double most = 0.0;
  for (std::int64_t i = begin; i < end; ++i) {
    const double norm = squared_norm(in_place<T>(problem.rows, i), problem.rows.features);
    most = weight_of(problem, i) > 0.0 ? larger(most, norm) : most;
  }
  return most;
}

template <class T>
GRADSTEP_NOINLINE void add_dense_gradient(const Problem& problem, const Model& model, const Scratch& scratch,
                                          std::int64_t begin, std::int64_t end, double* sum,
                                          double* intercept_sum) noexcept {
  const Rows& rows = problem.rows;
  const std::int64_t features = rows.features, outputs = problem.outputs, width = round_up(features, row_lanes);
  for (std::int64_t i = begin; i < end; ++i) {
    const InPlace<T> row = in_place<T>(rows, i);
    for (std::int64_t k = 0; k < outputs; ++k)
      scratch.scores[k] = dot(row, features, model.coef + k * width) + model.intercept[k];
    enter_slopes(problem, model, scratch, i, intercept_sum);
    for (std::int64_t k = 0; k < outputs; ++k) add(row, features, scratch.slopes[k], sum + k * width);
  }
}

// `single`: there is one output, whose score, slope and factors stay in registers. `copies`: rows are copied once they
// come into view, rather than read in place by every output.
template <bool single, bool copies, bool prox, class T>
GRADSTEP_NOINLINE void descend_dense_rows(const Problem& problem, const Model& model, const Scratch& shared,
                                          const Draws& draws, const Descent& descent) noexcept {
  using Row = std::conditional_t<copies, Copied, InPlace<T>>;
  const Rows& rows = problem.rows;
  const std::int64_t features = rows.features, width = round_up(features, row_lanes);
  const std::int64_t outputs = single ? 1 : problem.outputs;
  const Pace pace(problem, descent);
  const Pull pull{1.0 - descent.lr * descent.l2, pace.of_sum, descent.lr * descent.l1};
  double own[3] = {};
  const Scratch scratch = single ? Scratch{own, own + 1, own + 2, shared.row, shared.next_row} : shared;
  const std::int64_t distance = rows_ahead(width * static_cast<std::int64_t>(sizeof(T)));
  Order order(draws, rows.count, distance + 1);
  double *room = scratch.row, *next_room = scratch.next_row;
  const auto look_at = [&](std::int64_t i) {
    if constexpr (copies) {
      double* const place = next_room;
      next_room = room;
      room = place;
      copy(in_place<T>(rows, i), features, place);
      return Copied{place};
    } else {
      return in_place<T>(rows, i);
    }
  };

  std::int64_t i = order.rows[0];
  Row row = look_at(i);
  for (std::int64_t k = 0; k < outputs; ++k) scratch.next_scores[k] = dot(row, features, model.coef + k * width);
  for (std::int64_t n = 0; n < draws.count; ++n) {
    const std::int64_t* const upcoming = order.from(n);
    const std::int64_t next_i = upcoming[1], ahead = upcoming[1 + distance];
    GRADSTEP_PREFETCH(model.table + ahead * outputs);
    GRADSTEP_PREFETCH(target_of(problem, ahead));
    const T* const row_ahead = dense_row<T>(rows, ahead);
    if (copies) prefetch(row_ahead, features * static_cast<std::int64_t>(sizeof(T)));
    const Row next = look_at(next_i);
    for (std::int64_t k = 0; k < outputs; ++k) scratch.scores[k] = scratch.next_scores[k] + model.intercept[k];
    slopes_of<single>(problem, scratch.scores, target_of(problem, i), scratch.slopes);
    for (std::int64_t k = 0; k < outputs; ++k) {
      const Factors factors =
          step_output(model, pace, weight_of(problem, i), k, scratch.slopes[k], model.table[i * outputs + k]);
      scratch.next_scores[k] = step_row<prox>(row, next, copies ? nullptr : row_ahead, features, factors, pull,
                                              model.coef + k * width, model.sum + k * width);
    }
    i = next_i;
    row = next;
  }
}

template <bool single, bool copies, class T>
constexpr auto with_prox(bool prox) {
  return prox ? descend_dense_rows<single, copies, true, T> : descend_dense_rows<single, copies, false, T>;
}

template <class T>
void descend_dense(const Problem& problem, const Model& model, const Scratch& scratch, const Draws& draws,
                   const Descent& descent) noexcept {
  // Two copies, the weights and the sum fill half of a small cache of 32 KB then.
  constexpr std::int64_t narrow = 512;
  const bool prox = descent.l1 > 0.0;
  const auto rows = problem.outputs > 1               ? with_prox<false, true, T>(prox)
                    : problem.rows.features <= narrow ? with_prox<true, true, T>(prox)
                                                      : with_prox<true, false, T>(prox);
  rows(problem, model, scratch, draws, descent);
}

// Sparse rows ---------------------------------------------------------------------------------------------------------

// The values of one row and their columns.
template <class T, class Index>
struct SparseRow {
  const T* values;
  const Index* columns;
  std::int64_t size;

  SparseRow(const Rows& rows, std::int64_t i) {
    const Index* const offsets = static_cast<const Index*>(rows.offsets);
    values = static_cast<const T*>(rows.values) + offsets[i];
    columns = static_cast<const Index*>(rows.columns) + offsets[i];
    size = static_cast<std::int64_t>(offsets[i + 1]) - static_cast<std::int64_t>(offsets[i]);
  }
};

template <bool single, class T, class Index>
GRADSTEP_INLINE void sparse_scores(const SparseRow<T, Index>& row, const Model& model, std::int64_t all_outputs,
                                   double* scores) {
  const std::int64_t outputs = single ? 1 : all_outputs;
  for (std::int64_t k = 0; k < outputs; ++k) scores[k] = model.intercept[k];
  for (std::int64_t j = 0; j < row.size; ++j) {
    const double value = static_cast<double>(row.values[j]);
    const double* const w = model.coef + static_cast<std::int64_t>(row.columns[j]) * outputs;
    for (std::int64_t k = 0; k < outputs; ++k) scores[k] += value * w[k];
  }
}

template <class T, class Index>
GRADSTEP_NOINLINE void add_sparse_columns(const Problem& problem, std::int64_t begin, std::int64_t end, double* sums,
                                          double* squares, double* coverage) noexcept {
  for (std::int64_t i = begin; i < end; ++i) {
    const SparseRow<T, Index> row(problem.rows, i);
    const double weight = weight_of(problem, i);
    for (std::int64_t j = 0; j < row.size; ++j) {
      const double value = static_cast<double>(row.values[j]);
      sums[row.columns[j]] += weight * value;
      squares[row.columns[j]] += weight * (value * value);
      coverage[row.columns[j]] += weight;
    }
  }
}

template <class T, class Index>
GRADSTEP_NOINLINE double largest_sparse_norm(const Problem& problem, std::int64_t begin, std::int64_t end) noexcept {
  double most = 0.0;
  for (std::int64_t i = begin; i < end; ++i) {
    const SparseRow<T, Index> row(problem.rows, i);
    double norm = 0.0;
    for (std::int64_t j = 0; j < row.size; ++j) {
      const double value = static_cast<double>(row.values[j]);
      norm += value * value;
    }
    most = weight_of(problem, i) > 0.0 ? larger(most, norm) : most;
  }
  return most;
}

template <class T, class Index>
GRADSTEP_NOINLINE void add_sparse_gradient(const Problem& problem, const Model& model, const Scratch& scratch,
                                           std::int64_t begin, std::int64_t end, double* sum,
                                           double* intercept_sum) noexcept {
  const std::int64_t outputs = problem.outputs;
  for (std::int64_t i = begin; i < end; ++i) {
    const SparseRow<T, Index> row(problem.rows, i);
    sparse_scores<false>(row, model, outputs, scratch.scores);
    enter_slopes(problem, model, scratch, i, intercept_sum);
    for (std::int64_t j = 0; j < row.size; ++j) {
      const double value = static_cast<double>(row.values[j]);
      double* const column_sum = sum + static_cast<std::int64_t>(row.columns[j]) * outputs;
      for (std::int64_t k = 0; k < outputs; ++k) column_sum[k] += scratch.slopes[k] * value;
    }
  }
}

// Only the columns that the row holds move. What dense rows do to all columns at every step, the sum's share and the
// shrinking, is done to a column as many times stronger as its rows are rarer, which comes to the same on average
// (Pedregosa et al. 2017).
template <bool single, class T, class Index>
GRADSTEP_NOINLINE void descend_sparse_rows(const Problem& problem, const Model& model, const Scratch& shared,
                                           const Draws& draws, const Descent& descent) noexcept {
  const Rows& rows = problem.rows;
  const std::int64_t outputs = single ? 1 : problem.outputs;
  const Pace pace(problem, descent);
  const bool prox = descent.l1 > 0.0;
  const double threshold_per_sum = descent.l1 * problem.total_weight;  // both are as many times the dense one
  constexpr std::int64_t distance = 6;
  Order order(draws, rows.count, 2 * distance);
  double own[3] = {};
  double* const scores = single ? own : shared.scores;
  double* const slopes = single ? own + 1 : shared.slopes;
  double* const to_sum = single ? own + 2 : shared.next_scores;
  double* const to_weights = slopes;
  for (std::int64_t n = 0; n < draws.count; ++n) {
    const std::int64_t* const upcoming = order.from(n);
    const std::int64_t i = upcoming[0], ahead = upcoming[distance];
    const SparseRow<T, Index> row(rows, i), row_ahead(rows, ahead);
    GRADSTEP_PREFETCH(static_cast<const Index*>(rows.offsets) + upcoming[2 * distance]);
    GRADSTEP_PREFETCH(model.table + ahead * outputs);
    GRADSTEP_PREFETCH(target_of(problem, ahead));
    prefetch(row_ahead.values, row_ahead.size * static_cast<std::int64_t>(sizeof(T)));
    prefetch(row_ahead.columns, row_ahead.size * static_cast<std::int64_t>(sizeof(Index)));
    sparse_scores<single>(row, model, outputs, scores);
    slopes_of<single>(problem, scores, target_of(problem, i), slopes);
    for (std::int64_t k = 0; k < outputs; ++k) {
      const Factors factors =
          step_output(model, pace, weight_of(problem, i), k, slopes[k], model.table[i * outputs + k]);
      to_sum[k] = factors.to_sum;
      to_weights[k] = factors.to_weights;
    }
    for (std::int64_t j = 0; j < row.size; ++j) {
      const double value = static_cast<double>(row.values[j]);
      const std::int64_t column = static_cast<std::int64_t>(row.columns[j]);
      const ColumnPull pull = descent.pulls[column];
      const double threshold = threshold_per_sum * pull.of_sum;
      double* const w = model.coef + column * outputs;
      double* const sum = model.sum + column * outputs;
      for (std::int64_t k = 0; k < outputs; ++k) {
        const double moved = w[k] - (to_weights[k] * value + pull.of_sum * sum[k]);
        w[k] = pull.shrink * (prox ? soft_threshold(moved, threshold) : moved);
        sum[k] += to_sum[k] * value;
      }
    }
  }
}

template <class T, class Index>
void descend_sparse(const Problem& problem, const Model& model, const Scratch& scratch, const Draws& draws,
                    const Descent& descent) noexcept {
  const auto rows = problem.outputs == 1 ? descend_sparse_rows<true, T, Index> : descend_sparse_rows<false, T, Index>;
  rows(problem, model, scratch, draws, descent);
}

template <class T>
constexpr LinearKernels dense_kernels() {
  return {add_dense_columns<T>, largest_dense_norm<T>, add_dense_gradient<T>, descend_dense<T>};
}

template <class T, class Index>
constexpr LinearKernels sparse_kernels() {
  return {add_sparse_columns<T, Index>, largest_sparse_norm<T, Index>, add_sparse_gradient<T, Index>,
          descend_sparse<T, Index>};
}

}  // namespace

const LinearKernels float32_rows[layout_count] = {dense_kernels<float>(), sparse_kernels<float, std::int32_t>(),
                                                  sparse_kernels<float, std::int64_t>()};
const LinearKernels float64_rows[layout_count] = {dense_kernels<double>(), sparse_kernels<double, std::int32_t>(),
                                                  sparse_kernels<double, std::int64_t>()};

}  // namespace gradstep::GRADSTEP_LEVEL
