// What the bindings share.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "checks.hpp"

namespace gradstep {

constexpr const char* in_use = "another thread is stepping, saving or loading this optimizer";

inline std::string text(const pybind11::handle& object) { return pybind11::str(object).cast<std::string>(); }

/// The place of a rule in the table of every level.
inline int rule_named(const std::string& name) {
  const int rule = find_rule(name.c_str());
  if (rule < 0) throw pybind11::key_error(name);
  return rule;
}

}  // namespace gradstep
