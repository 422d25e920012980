// What the bindings share.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "checks.hpp"
#include "claims.hpp"
#include "row_jobs.hpp"

namespace gradstep {

constexpr const char* in_use = "another thread is stepping, saving or loading this optimizer";

inline std::string text(const pybind11::handle& object) { return pybind11::str(object).cast<std::string>(); }

/// The place of a rule in the table of every level.
inline int rule_named(const std::string& name) {
  const int rule = find_rule(name.c_str());
  if (rule < 0) throw pybind11::key_error(name);
  return rule;
}

using Shape = std::vector<pybind11::ssize_t>;

/// Whether a rule has a state beside a parameter of so many axes. Where second moments are factored along the last two
/// axes, an array that has two needs the factors alone, and another one none of them.
inline bool has_state(const Spec& spec, int state, std::size_t axes) {
  return spec.row_factor < 0 || (axes > 1) == (state >= spec.row_factor);
}

/// The shape of a state beside a parameter of some shape.
inline Shape state_shape(const Spec& spec, int state, Shape shape) {
  if (!has_state(spec, state, shape.size())) return {0};
  if (spec.row_factor >= 0 && state >= spec.row_factor) *(shape.end() - (state == spec.row_factor ? 1 : 2)) = 1;
  return shape;
}

/// The matrices that a parameter consists of, where its rule factors second moments.
inline Matrices matrices_of(const Spec& spec, const Shape& shape) {
  if (spec.row_factor < 0 || shape.size() < 2) return {0, 0};
  return {shape[shape.size() - 2], shape.back()};
}

/// What claims compare: elements of 4 or 8 bytes.
inline Memory memory_of(const RowIndices& indices) {
  return {reinterpret_cast<std::uintptr_t>(indices.data), indices.count,
          indices.wide ? Storage::float64 : Storage::float32};
}

}  // namespace gradstep
