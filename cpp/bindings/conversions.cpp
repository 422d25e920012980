// What checkpoints convert with: the converters of the level in use, as steps use them, rounding to nearest.
#include "conversions.hpp"

#include <pybind11/numpy.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "levels.hpp"

namespace py = pybind11;

namespace gradstep {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Halves = py::array_t<std::uint16_t, py::array::c_style>;
template <class Code>
using Blocks = py::array_t<Code, py::array::c_style>;

void check_sizes(bool fit) {
  if (!fit) throw py::value_error("the arrays do not have the same number of elements");
}

template <class Code>
void check_blocks(const Floats& numbers, const Blocks<Code>& blocks) {
  check_sizes(blocks.size() == (numbers.size() + state_block - 1) / state_block * held_block);
}

constexpr Storage storage_of(std::int8_t) { return Storage::int8; }
constexpr Storage storage_of(std::uint8_t) { return Storage::uint8; }

template <class Code>
void to_blocks(const Floats& numbers, Blocks<Code> blocks) {
  check_blocks(numbers, blocks);
  const Store store = active_level().table().float32_converters.store[static_cast<int>(storage_of(Code{}))];
  const float* from = numbers.data();
  Code* to = blocks.mutable_data();
  const std::int64_t size = numbers.size(), whole = size - size % state_block;
  store(from, to, whole, nullptr, 0);
  if (whole == size) return;
  alignas(64) std::array<float, state_block> last{};  // filled up with zeros
  std::copy(from + whole, from + size, last.begin());
  store(last.data(), to + whole / state_block * held_block, state_block, nullptr, 0);
}

template <class Code>
void from_blocks(const Blocks<Code>& blocks, Floats numbers) {
  check_blocks(numbers, blocks);
  const Load load = active_level().table().float32_converters.load[static_cast<int>(storage_of(Code{}))];
  const Code* from = blocks.data();
  float* to = numbers.mutable_data();
  const std::int64_t size = numbers.size(), whole = size - size % state_block;
  load(from, to, whole);
  if (whole == size) return;
  alignas(64) std::array<float, state_block> last;
  load(from + whole / state_block * held_block, last.data(), state_block);
  std::copy_n(last.begin(), size - whole, to + whole);
}

void split(const Floats& numbers, Halves high, Halves low) {
  check_sizes(high.size() == numbers.size() && low.size() == numbers.size());
  active_level().table().split(numbers.data(), high.mutable_data(), low.mutable_data(), numbers.size());
}

void join(const Halves& high, const Halves& low, Floats numbers) {
  check_sizes(high.size() == numbers.size() && low.size() == numbers.size());
  active_level().table().join(high.data(), low.data(), numbers.mutable_data(), numbers.size());
}

}  // namespace

void define_conversions(py::module_& m) {
  const auto numbers = py::arg("numbers").noconvert(), blocks = py::arg("blocks").noconvert();
  const auto high = py::arg("high").noconvert(), low = py::arg("low").noconvert();
  const char* to = "Store float32 numbers in 8-bit blocks, rounded to nearest.";
  const char* from = "Load float32 numbers from 8-bit blocks.";
  m.def("to_blocks", &to_blocks<std::int8_t>, to, numbers, blocks);
  m.def("to_blocks", &to_blocks<std::uint8_t>, to, numbers, blocks);
  m.def("from_blocks", &from_blocks<std::int8_t>, from, blocks, numbers);
  m.def("from_blocks", &from_blocks<std::uint8_t>, from, blocks, numbers);
  m.def("split", &split, "Split float32 numbers into the bits of the nearest bfloat16 and the remainder.", numbers,
        high, low);
  m.def("join", &join, "Join what split() has split.", high, low, numbers);
  m.attr("STATE_BLOCK") = state_block;
  m.attr("NORM_BLOCK") = block_size;
}

}  // namespace gradstep
