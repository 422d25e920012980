// The finite sum of a linear model: takes hold of the rows, owns what descent moves, calls the kernels of rows.hpp.
//
// gradstep.linear has checked what the arguments mean; this checks what memory safety needs.

#include "finite_sum.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include "levels.hpp"
#include "math.hpp"
#include "threads.hpp"

namespace py = pybind11;

namespace gradstep {
namespace {

using Doubles = py::array_t<double, py::array::c_style>;
using SparseRows = std::tuple<py::array, py::array, py::array, std::int64_t>;  // values, columns, offsets, features

template <class Enum>
Enum choose(const std::string& name, std::initializer_list<std::pair<const char*, Enum>> choices) {
  for (const auto& [known, value] : choices)
    if (name == known) return value;
  throw py::key_error(name);
}

Loss loss_named(const std::string& name) {
  return choose<Loss>(name, {{"least_squares", Loss::least_squares},
                             {"huber", Loss::huber},
                             {"logistic", Loss::logistic},
                             {"softmax", Loss::softmax},
                             {"squared_hinge", Loss::squared_hinge}});
}

Variant variant_named(const std::string& name) {
  return choose<Variant>(name, {{"sag", Variant::sag}, {"saga", Variant::saga}, {"svrg", Variant::svrg}});
}

// Zeros at a cache line. `place` keeps arrays that are swept together apart in the low bits of their addresses, by
// which some processors confuse a load with an earlier store.
Doubles zeros(std::vector<py::ssize_t> shape, int place) {
  constexpr std::size_t page = 4096, stagger = 1024, most = std::size_t{1} << 62;
  std::size_t bytes = sizeof(double);
  for (const py::ssize_t size : shape) {
    if (static_cast<std::size_t>(size) > most / bytes) throw std::bad_alloc();
    bytes *= static_cast<std::size_t>(size);
  }
  const std::size_t offset = stagger * static_cast<std::size_t>(place);
  char* const room = static_cast<char*>(::operator new(bytes + offset + page, std::align_val_t(page)));
  std::memset(room + offset, 0, bytes);
  const py::capsule owner(room, [](void* p) { ::operator delete(p, std::align_val_t(page)); });
  return Doubles(std::move(shape), reinterpret_cast<double*>(room + offset), owner);
}

void require(bool condition, const char* message) {
  if (!condition) throw py::value_error(message);
}

// In the byte order of this machine.
template <class T>
bool holds(const py::array& array) {
  return py::isinstance<py::array_t<T>>(array);
}

bool is_plain(const py::array& array) {
  return (array.flags() & py::array::c_style) && (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_);
}

class FiniteSum {
 public:
  FiniteSum(const std::variant<SparseRows, py::array>& rows, const Doubles& targets, std::optional<Doubles> weights,
            const std::string& loss, std::int64_t outputs, double delta, bool centre)
      : targets_(targets), weights_(std::move(weights)) {
    problem_.loss = loss_named(loss);
    problem_.delta = delta;
    problem_.outputs = outputs;
    require(outputs > 0, "a model has outputs");
    if (const auto* dense = std::get_if<py::array>(&rows))
      take_dense(*dense);
    else
      take_sparse(std::get<SparseRows>(rows));
    const FloatMode mode(Denormals::keep);
    take_targets();
    take_weights();
    const bool is_dense = layout_ == Layout::dense;
    const py::ssize_t k = outputs, p = is_dense ? width_ : problem_.rows.features;
    coef = is_dense ? zeros({k, p}, 0) : zeros({p, k}, 0);
    sum = is_dense ? zeros({k, p}, 1) : zeros({p, k}, 1);
    intercept = zeros({k}, 0);
    intercept_sum = zeros({k}, 0);
    table = zeros({count(), k}, 2);
    means = zeros({width_}, 0);
    squares = zeros({width_}, 0);
    coverage = zeros({width_}, 0);
    look_at_columns(centre && is_dense);
    look_at_norms();
  }

  /// Forms all slopes at the present weights: the table and its sum are then exact.
  void snapshot() {
    const Hold hold(*this);
    sum_gradients(table.mutable_data(), sum, intercept_sum);
  }

  /// The sums that snapshot() would form. Nothing changes.
  std::pair<Doubles, Doubles> gradient() {
    const Hold hold(*this);
    Doubles gradient(std::vector<py::ssize_t>(sum.shape(), sum.shape() + sum.ndim()));
    Doubles intercept_gradient(intercept_sum.size());
    sum_gradients(nullptr, gradient, intercept_gradient);
    return {gradient, intercept_gradient};
  }

  /// Steps at `draws` rows.
  void descend(const std::string& variant, double lr, double l2, double l1, bool fit_intercept, std::int64_t draws,
               std::uint64_t seed, std::uint64_t first) {
    require(draws >= 0, "draws must not be negative");
    const Hold hold(*this);
    const FloatMode mode(Denormals::keep);
    std::vector<ColumnPull> pulls;
    if (layout_ != Layout::dense) pulls = column_pulls(lr, l2);
    const Descent descent{variant_named(variant), lr, l2, l1, fit_intercept, pulls.data()};
    const Draws plan{seed, first, draws, keep_.empty() ? nullptr : keep_.data(),
                     others_.empty() ? nullptr : others_.data()};
    const Model model = this->model();
    const LinearKernels& kernels = this->kernels();
    const py::gil_scoped_release release;
    Room room(problem_.outputs, layout_ == Layout::dense ? width_ : 0);
    kernels.descend(problem_, model, room.scratch, plan, descent);
  }

  double total_weight() const { return problem_.total_weight; }

  Doubles coef, intercept, sum, intercept_sum, table;
  Doubles means, squares, coverage;  // of columns
  double largest_norm = 0;           // the largest squared norm of a row, the mean subtracted

 private:
  // A method that releases the GIL has the sum to itself, and a hold does not outlive fork(), as in Plan.
  struct Hold {
    explicit Hold(FiniteSum& owner) : owner(owner) {
      if (owner.busy_ && owner.forks_at_hold_ == fork_count())
        throw std::runtime_error("another thread is using this FiniteSum");
      owner.busy_ = true;
      owner.forks_at_hold_ = fork_count();
    }
    ~Hold() { owner.busy_ = false; }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;
    FiniteSum& owner;
  };

  // Rows in consecutive blocks, whose parts of a sum are added in their order. Their number depends on sizes alone.
  struct Blocks {
    std::int64_t count, rows;
    std::int64_t begin(std::int64_t b) const { return b * rows; }
    std::int64_t end(std::int64_t b, std::int64_t total) const { return std::min((b + 1) * rows, total); }
  };

  // Room for what is known of one row, and for two rows, at a cache line. Outputs that do not exist have a score of
  // minus infinity, whose exponential is 0.
  class Room {
   public:
    Room(std::int64_t outputs, std::int64_t width) {
      const std::int64_t size = round_up(outputs, output_lanes), numbers = 3 * size + 2 * width;
      room_.resize(static_cast<std::size_t>(numbers) * sizeof(double) + line, 0);
      void* start = room_.data();
      std::size_t space = room_.size();
      auto* const scores = static_cast<double*>(std::align(line, space - line, start, space));
      std::fill_n(scores, 3 * size, -std::numeric_limits<double>::infinity());
      scratch = {scores, scores + size, scores + 2 * size, scores + 3 * size, scores + 3 * size + width};
    }
    Scratch scratch;

   private:
    static constexpr std::size_t line = 64;
    std::vector<char> room_;
  };

  std::int64_t count() const { return problem_.rows.count; }

  // A pass over fewer elements takes some 2 ms on one thread; on a busy machine, to wait for another takes longer.
  static int threads_for(std::int64_t elements) {
    constexpr std::int64_t worthwhile = std::int64_t{1} << 22;
    return elements < worthwhile ? 1 : get_num_threads();
  }

  void sum_gradients(double* slopes, Doubles& into, Doubles& into_intercept) {
    Model model = this->model();
    model.table = slopes;
    model.sum = into.mutable_data();
    model.intercept_sum = into_intercept.mutable_data();
    const LinearKernels& kernels = this->kernels();
    const std::int64_t outputs = problem_.outputs, size = into.size(), numbers = size + outputs;
    const py::gil_scoped_release release;
    const FloatMode mode(Denormals::keep);
    std::vector<Room> rooms;  // made here, because nothing can catch what a thread of OpenMP throws
    for (std::int64_t b = 0; b < blocks_of(numbers, values_per_row_ * outputs).count; ++b)
      rooms.emplace_back(outputs, 0);
    const std::vector<double> sums = sum_over_rows(
        numbers, values_per_row_ * outputs, [&](std::int64_t b, std::int64_t begin, std::int64_t end, double* part) {
          const Scratch& scratch = rooms[static_cast<std::size_t>(b)].scratch;
          kernels.add_gradient(problem_, model, scratch, begin, end, part, part + size);
        });
    std::copy_n(sums.data(), size, model.sum);
    std::copy_n(sums.data() + size, outputs, model.intercept_sum);
  }

  Model model() {
    return {coef.mutable_data(), intercept.mutable_data(), table.mutable_data(), sum.mutable_data(),
            intercept_sum.mutable_data()};
  }

  const LinearKernels& kernels() const {
    const Table& all = active_level().table();
    return (single_precision_ ? all.float32_rows : all.float64_rows)[static_cast<int>(layout_)];
  }

  // A block sums `size` values per row into so many numbers, which are fewer than the values by far.
  Blocks blocks_of(std::int64_t numbers, std::int64_t size) const {
    constexpr std::int64_t most = 64, least_rows = 64, room = std::int64_t{1} << 23, values_per_number = 4;
    const std::int64_t worthwhile = count() * size / (values_per_number * numbers);
    const std::int64_t fitting = std::clamp<std::int64_t>(std::min(room / numbers, worthwhile), 1, most);
    const std::int64_t rows = std::max(least_rows, (count() + fitting - 1) / fitting);
    return {(count() + rows - 1) / rows, rows};
  }

  void take_values(const py::array& values) {
    single_precision_ = holds<float>(values);
    if (!single_precision_ && !holds<double>(values)) throw py::type_error("rows must be float32 or float64");
    require(values.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_, "rows must be aligned to their elements");
    problem_.rows.values = values.data();
  }

  void take_dense(const py::array& rows) {
    take_values(rows);
    const std::int64_t item_size = rows.itemsize();
    require(rows.ndim() == 2 && rows.shape(0) > 0 && rows.shape(1) > 0, "rows must be a table that is not empty");
    Rows& r = problem_.rows;
    r.count = rows.shape(0);
    r.features = rows.shape(1);
    r.stride = r.count == 1 ? r.features : rows.strides(0) / item_size;
    require((r.features == 1 || rows.strides(1) == item_size) && r.stride >= r.features, "rows must be contiguous");
    width_ = values_per_row_ = round_up(r.features, row_lanes);
    const std::int64_t inside = (r.count - 1) * r.stride + r.features;  // elements that may be read
    r.tails_begin = inside < width_ ? 0 : (inside - width_) / r.stride + 1;
    tails_.resize(static_cast<std::size_t>((r.count - r.tails_begin) * width_ * item_size));
    for (std::int64_t i = r.tails_begin; i < r.count; ++i)
      std::memcpy(tails_.data() + (i - r.tails_begin) * width_ * item_size,
                  static_cast<const char*>(r.values) + i * r.stride * item_size,
                  static_cast<std::size_t>(r.features * item_size));
    mean_ = zeros({width_}, 3);
    r.tails = tails_.data();
    r.mean = mean_.data();  // float32 takes half of the room
    layout_ = Layout::dense;
    rows_ = rows;
  }

  // Copied before they are checked: the kernels index by them without the GIL, while another thread may write to the
  // arrays of the caller.
  template <class Index>
  void take_places(const py::array& values, const py::array& columns, const py::array& offsets) {
    places_.resize(static_cast<std::size_t>(offsets.nbytes() + columns.nbytes()));
    std::memcpy(places_.data(), offsets.data(), static_cast<std::size_t>(offsets.nbytes()));
    std::memcpy(places_.data() + offsets.nbytes(), columns.data(), static_cast<std::size_t>(columns.nbytes()));
    const auto* const offset = reinterpret_cast<const Index*>(places_.data());
    const auto* const column = offset + offsets.size();
    problem_.rows.offsets = offset;
    problem_.rows.columns = column;
    require(offset[0] == 0 && offset[count()] <= std::min(values.size(), columns.size()),
            "rows end beyond their values");
    for (std::int64_t i = 0; i < count(); ++i) require(offset[i] <= offset[i + 1], "rows must follow one another");
    for (std::int64_t i = 0; i < count(); ++i)
      for (Index j = offset[i]; j < offset[i + 1]; ++j) {
        require(column[j] >= 0 && column[j] < problem_.rows.features, "a row holds a column that does not exist");
        require(j == offset[i] || column[j - 1] < column[j], "the columns of a row must increase");
      }
  }

  void take_sparse(const SparseRows& rows) {
    const auto& [values, columns, offsets, features] = rows;
    take_values(values);
    const bool wide = holds<std::int64_t>(columns);
    if (!wide && !holds<std::int32_t>(columns)) throw py::type_error("columns must be int32 or int64");
    if (wide ? !holds<std::int64_t>(offsets) : !holds<std::int32_t>(offsets))
      throw py::type_error("offsets must be of the type of the columns");
    require(is_plain(values) && is_plain(columns) && is_plain(offsets), "rows must be contiguous");
    require(values.ndim() == 1 && columns.ndim() == 1 && offsets.ndim() == 1 && offsets.size() > 1 && features > 0,
            "rows must be a table that is not empty");
    Rows& r = problem_.rows;
    r.count = offsets.size() - 1;
    r.features = features;
    width_ = features;
    layout_ = wide ? Layout::sparse64 : Layout::sparse32;
    if (wide)
      take_places<std::int64_t>(values, columns, offsets);
    else
      take_places<std::int32_t>(values, columns, offsets);
    values_per_row_ = 1 + values.size() / r.count;
    rows_ = values;
  }

  void take_targets() {
    const bool labels = problem_.loss != Loss::least_squares && problem_.loss != Loss::huber;
    require(count() <= std::numeric_limits<std::uint32_t>::max(), "rows are drawn by 32-bit numbers");
    problem_.targets_per_row = labels ? 1 : problem_.outputs;
    require(targets_.size() % count() == 0 && targets_.size() / count() == problem_.targets_per_row,
            "a target per row and output");
    require(is_plain(targets_), "targets must be aligned to their elements");
    require(problem_.loss != Loss::logistic || problem_.outputs == 1, "logistic loss has one output");
    require(problem_.loss != Loss::softmax || problem_.outputs > 1, "softmax loss has several outputs");
    const double* const target = targets_.data();
    const double classes = static_cast<double>(std::max<std::int64_t>(problem_.outputs, 2));
    for (py::ssize_t i = 0; i < targets_.size(); ++i)
      require(labels ? target[i] >= 0 && target[i] < classes && target[i] == std::floor(target[i])
                     : std::isfinite(target[i]),
              labels ? "a label is not the number of a class" : "a target is not finite");
    problem_.targets = target;
  }

  void take_weights() {
    problem_.weights = nullptr;
    problem_.total_weight = static_cast<double>(count());
    if (!weights_) return;
    require(weights_->size() == count(), "a weight per row");
    require(is_plain(*weights_), "weights must be aligned to their elements");
    const double* const weight = weights_->data();
    double total = 0;
    for (std::int64_t i = 0; i < count(); ++i) {
      require(std::isfinite(weight[i]) && weight[i] >= 0, "weights must be at least 0 and finite");
      total += weight[i];
    }
    require(total > 0 && std::isfinite(total), "the weights must have a sum above 0");
    problem_.weights = weight;
    problem_.total_weight = total;
    if (std::any_of(weight, weight + count(), [&](double w) { return w != weight[0]; })) fill_alias_table();
  }

  // Walker's alias table, as Vose (1991) fills it: each row keeps a share of its place and leaves the rest to another.
  void fill_alias_table() {
    const auto n = static_cast<std::size_t>(count());
    keep_.resize(n);
    others_.resize(n);
    std::vector<std::int64_t> small, large;
    const double scale = static_cast<double>(count()) / problem_.total_weight;
    for (std::size_t i = 0; i < n; ++i) {
      keep_[i] = problem_.weights[i] * scale;
      others_[i] = static_cast<std::int64_t>(i);
      (keep_[i] < 1 ? small : large).push_back(static_cast<std::int64_t>(i));
    }
    while (!small.empty() && !large.empty()) {
      const auto less = static_cast<std::size_t>(small.back()), more = static_cast<std::size_t>(large.back());
      small.pop_back();
      others_[less] = large.back();
      keep_[more] -= 1 - keep_[less];
      if (keep_[more] < 1) {
        small.push_back(large.back());
        large.pop_back();
      }
    }
    // What rounding left over keeps all of its place, unless it must never be drawn.
    for (const std::int64_t i : small)
      if (problem_.weights[i] > 0) keep_[static_cast<std::size_t>(i)] = 1;
    const auto heaviest = std::max_element(problem_.weights, problem_.weights + count()) - problem_.weights;
    for (const std::int64_t i : small)
      if (!(problem_.weights[i] > 0)) others_[static_cast<std::size_t>(i)] = heaviest;
  }

  // Sums over rows, block by block: `work(block, begin, end, part)` fills a part of so many numbers, and moves `size`
  // of them per row.
  std::vector<double> sum_over_rows(
      std::int64_t numbers, std::int64_t size,
      const std::function<void(std::int64_t, std::int64_t, std::int64_t, double*)>& work) const {
    const Blocks blocks = blocks_of(numbers, size);
    std::vector<double> parts(static_cast<std::size_t>(blocks.count * numbers));
    for_each(blocks.count, blocks.rows * size, threads_for(count() * size), Denormals::keep,
             [&](std::int64_t b) { work(b, blocks.begin(b), blocks.end(b, count()), parts.data() + b * numbers); });
    for (std::int64_t b = 1; b < blocks.count; ++b)
      for (std::int64_t j = 0; j < numbers; ++j)
        parts[static_cast<std::size_t>(j)] += parts[static_cast<std::size_t>(b * numbers + j)];
    parts.resize(static_cast<std::size_t>(numbers));
    return parts;
  }

  // Shrinking is the proximal step of the penalty, which cannot overshoot however rare the column.
  std::vector<ColumnPull> column_pulls(double lr, double l2) const {
    std::vector<ColumnPull> pulls(static_cast<std::size_t>(width_));
    const double of_sum = lr / problem_.total_weight;
    for (std::int64_t j = 0; j < width_; ++j) {
      const double covered = coverage.at(j);
      pulls[static_cast<std::size_t>(j)] = {1 / (1 + lr * l2 * covered), of_sum * covered};
    }
    return pulls;
  }

  // Means, mean squares and coverage of the columns; the mean becomes the rows' where they are centred.
  void look_at_columns(bool centre) {
    const std::int64_t width = width_;
    const LinearKernels& kernels = this->kernels();
    const std::vector<double> sums = sum_over_rows(
        3 * width, values_per_row_, [&](std::int64_t, std::int64_t begin, std::int64_t end, double* part) {
          kernels.add_columns(problem_, begin, end, part, part + width, part + 2 * width);
        });
    for (std::int64_t j = 0; j < problem_.rows.features; ++j) {
      const auto place = static_cast<std::size_t>(j);
      const double mean = sums[place] / problem_.total_weight;
      means.mutable_at(j) = mean;
      squares.mutable_at(j) = sums[place + static_cast<std::size_t>(width)] / problem_.total_weight;
      const double covered = sums[place + static_cast<std::size_t>(2 * width)];
      coverage.mutable_at(j) = covered > 0 ? problem_.total_weight / covered : 0.0;
      if (!centre) continue;
      if (single_precision_)
        static_cast<float*>(static_cast<void*>(mean_.mutable_data()))[j] = static_cast<float>(mean);
      else
        mean_.mutable_at(j) = mean;
    }
  }

  void look_at_norms() {
    const LinearKernels& kernels = this->kernels();
    const Blocks blocks = blocks_of(1, values_per_row_);
    std::vector<double> norms(static_cast<std::size_t>(blocks.count));
    for_each(blocks.count, blocks.rows * values_per_row_, threads_for(count() * values_per_row_), Denormals::keep,
             [&](std::int64_t b) {
               norms[static_cast<std::size_t>(b)] =
                   kernels.largest_norm(problem_, blocks.begin(b), blocks.end(b, count()));
             });
    for (const double norm : norms)
      if (!(norm <= largest_norm || std::isnan(largest_norm))) largest_norm = norm;
  }

  Problem problem_{};
  Layout layout_ = Layout::dense;
  bool single_precision_ = false;
  std::int64_t width_ = 0;           // numbers per output
  std::int64_t values_per_row_ = 0;  // of sparse rows on average
  bool busy_ = false;                // guarded by the GIL
  int forks_at_hold_ = 0;
  py::array rows_;            // keeps the memory of the values
  std::vector<char> places_;  // offsets and columns of sparse rows
  Doubles targets_;
  std::optional<Doubles> weights_;
  Doubles mean_;  // what is subtracted, in the type of the rows
  std::vector<char> tails_;
  std::vector<double> keep_;
  std::vector<std::int64_t> others_;
};

}  // namespace

void define_finite_sum(py::module_& m) {
  py::class_<FiniteSum>(m, "FiniteSum", "The weighted mean of a linear model's losses over rows.")
      .def(py::init<std::variant<SparseRows, py::array>, Doubles, std::optional<Doubles>, std::string, std::int64_t,
                    double, bool>(),
           py::arg("rows"), py::arg("targets"), py::arg("weights"), py::arg("loss"), py::arg("outputs"),
           py::arg("delta"), py::arg("centre"),
           "Rows are a table, or (values, columns, offsets, features) of CSR; values are not copied.")
      .def("snapshot", &FiniteSum::snapshot, "Form all slopes at the present weights, and so the table and its sum.")
      .def("gradient", &FiniteSum::gradient, "The sums that snapshot() would form; nothing changes.")
      .def("descend", &FiniteSum::descend, py::arg("variant"), py::arg("lr"), py::arg("l2"), py::arg("l1"),
           py::arg("fit_intercept"), py::arg("draws"), py::arg("seed"), py::arg("first"),
           "Step at so many rows, the first of which is the draw `first` of the seed.")
      .def_property_readonly("total_weight", &FiniteSum::total_weight)
      .def_readonly("coef", &FiniteSum::coef)
      .def_readonly("intercept", &FiniteSum::intercept)
      .def_readonly("sum", &FiniteSum::sum)
      .def_readonly("intercept_sum", &FiniteSum::intercept_sum)
      .def_readonly("table", &FiniteSum::table)
      .def_readonly("means", &FiniteSum::means)
      .def_readonly("squares", &FiniteSum::squares)
      .def_readonly("coverage", &FiniteSum::coverage)
      .def_readonly("largest_norm", &FiniteSum::largest_norm);
}

}  // namespace gradstep
