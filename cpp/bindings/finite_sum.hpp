// The finite sum of a linear model, for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace gradstep {

void define_finite_sum(pybind11::module_& m);

}  // namespace gradstep
