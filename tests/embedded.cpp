// The C++ face: what it refuses, and five steps whose bits tests/test_c_api.py compares with Python's.
#include <cstdio>
#include <cstdlib>
#include <gradstep/gradstep.hpp>
#include <string>
#include <vector>

template <class Work>
void expect_error(const std::string& message, const Work& work) {
  try {
    work();
  } catch (const gradstep::error& error) {
    if (error.what() == message) return;
    std::printf("got '%s' for '%s'\n", error.what(), message.c_str());
    std::exit(1);
  }
  std::printf("no error: %s\n", message.c_str());
  std::exit(1);
}

void expect(bool truth, const char* what) {
  if (truth) return;
  std::printf("not so: %s\n", what);
  std::exit(1);
}

int main() {
  using Doubles = gradstep::Optimizer<double>;
  expect_error("sgd_momentum needs the hyper-parameter dampening",
               [] { Doubles("sgd_momentum", {{"lr", 0.1}, {"momentum", 0.9}}); });
  expect_error("sgd has no hyper-parameter lr_decay", [] { Doubles("sgd", {{"lr", 0.1}, {"lr_decay", 0.9}}); });
  expect_error("lr must be at least 0 and finite, got -0.1", [] { Doubles("sgd", {{"lr", -0.1}}); });
  expect_error("saga needs y from the caller at each step, which is for gradstep.h", [] { Doubles("saga", {}); });
  expect_error("svrg needs snapshot_grad from the caller at each step, which is for gradstep.h",
               [] { Doubles("svrg", {}); });

  std::vector<double> a(100), b(7), grad_a(100), grad_b(7);
  for (int i = 0; i < 100; ++i) a[std::size_t(i)] = -1 + i * (2.0 / 99);
  a[99] = 1;
  for (int i = 0; i < 7; ++i) b[std::size_t(i)] = 2 + i * (1.0 / 6);
  b[6] = 3;
  gradstep::Options options;
  options.weight_decay = 0.01;
  Doubles made("adagrad", {{"lr", 0.5}, {"lr_decay", 0}, {"eps", 1e-10}}, options);
  Doubles adagrad = std::move(made);
  adagrad.set("lr", 0.1);
  expect(adagrad.get("lr") == 0.1, "lr is what was set");
  expect_error("eps must be above 0 and finite, got 0.0", [&] { adagrad.set("eps", 0); });
  adagrad.add(a);
  adagrad.add(b.data(), b.size());
  gradstep::Treatment clip;
  clip.clip_norm = 1.0;
  expect_error("grads must hold 2 arrays, got 1", [&] { adagrad.step({grad_a.data()}); });
  expect_error("arrays[1].grad shares memory with arrays[0].param, which the step writes to",
               [&] { adagrad.step({grad_a.data(), a.data() + 10}); });
  for (int t = 1; t <= 5; ++t) {
    for (std::size_t i = 0; i < a.size(); ++i) grad_a[i] = a[i] * 0.5;
    for (std::size_t i = 0; i < b.size(); ++i) grad_b[i] = b[i] * 0.5;
    const std::vector<double*> grads{grad_a.data(), grad_b.data()};
    const gradstep::Result result = adagrad.step(grads, clip);
    expect(result.clipped && result.grad_norm > 1 && !result.skipped, "the step tells that it clipped");
  }
  expect(adagrad.t() == 5, "five steps were counted");
  expect(adagrad.state("s", 1)[6] > 0, "the states are there");
  expect_error("adagrad has no state v", [&] { adagrad.state("v", 0); });
  expect_error("parameters must be added before the first step", [&] { adagrad.add(grad_a); });
  for (const double x : a) std::printf("%.17g\n", x);
  for (const double x : b) std::printf("%.17g\n", x);
}
