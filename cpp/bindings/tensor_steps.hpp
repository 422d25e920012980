// The steps of gradstep.torch, for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace gradstep {

void define_tensor_steps(pybind11::module_& m);

}  // namespace gradstep
