// Conversions between storage formats, for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace gradstep {

void define_conversions(pybind11::module_& m);

}  // namespace gradstep
