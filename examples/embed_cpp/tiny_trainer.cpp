// Least squares in C++: the loop, the gradients and the steps are native, and Python waits for the result.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <gradstep/gradstep.hpp>
#include <utility>
#include <vector>

namespace py = pybind11;

// The coefficients and the intercept that `epochs` full-batch steps of Adam end with, and the loss of each.
std::pair<std::vector<double>, std::vector<double>> fit(
    const py::array_t<double, py::array::c_style | py::array::forcecast>& x,
    const py::array_t<double, py::array::c_style | py::array::forcecast>& y, int epochs, double lr) {
  const auto rows = x.unchecked<2>();
  const auto targets = y.unchecked<1>();
  if (targets.shape(0) != rows.shape(0)) throw py::value_error("x and y must have as many rows");
  const auto features = static_cast<std::size_t>(rows.shape(1));
  std::vector<double> weights(features + 1), gradient(features + 1), losses;

  gradstep::Optimizer<double> adam(
      "adam", {{"lr", lr}, {"beta1", 0.9}, {"beta2", 0.999}, {"eps", 1e-8}, {"bias_correction", 1}});
  adam.add(weights);
  gradstep::Treatment treatment;
  treatment.grad_scale = 1.0 / static_cast<double>(rows.shape(0));
  treatment.clip_norm = 10.0;
  treatment.zero_grad = true;

  const py::gil_scoped_release release;
  for (int epoch = 0; epoch < epochs; ++epoch) {
    double loss = 0;
    for (py::ssize_t i = 0; i < rows.shape(0); ++i) {
      double error = weights[features] - targets(i);
      for (std::size_t k = 0; k < features; ++k) error += weights[k] * rows(i, static_cast<py::ssize_t>(k));
      for (std::size_t k = 0; k < features; ++k) gradient[k] += error * rows(i, static_cast<py::ssize_t>(k));
      gradient[features] += error;
      loss += error * error / 2;
    }
    losses.push_back(loss * treatment.grad_scale);
    adam.step({gradient.data()}, treatment);
  }
  return {weights, losses};
}

PYBIND11_MODULE(_core, m) {
  m.def("fit", fit, py::arg("x"), py::arg("y"), py::arg("epochs") = 1000, py::arg("lr") = 0.05);
}
