// Rules that look at the sign of the gradient, or of a mean of it.
#pragma once

#include "rule.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

// Rprop (Riedmiller and Braun 1993), as PyTorch has it: a step size for each parameter grows while the sign of its
// gradient stays, and shrinks where it turns; there the parameter rests.
//   s = g prev
//   step = min(max(step (etaplus where s > 0, etaminus where s < 0, else 1), step_min), step_max)     (t = 1: lr)
//   g = 0 where s < 0
//   w = w - sign(g) step
//   prev = g
template <class T>
struct Rprop {
  struct Hyper {
    double lr, etaminus, etaplus, step_min, step_max;
  };
  static constexpr Spec spec{"rprop",
                             {{"lr", Range::non_negative},
                              {"etaminus", Range::below_one},
                              {"etaplus", Range::positive},
                              {"step_min", Range::non_negative},
                              {"step_max", Range::positive}},
                             {"prev", never_negative("step_size")}};

  T lr, etaminus, etaplus, step_min, step_max;
  Flag<T> first;

  Rprop(const Hyper& h, std::int64_t t)
      : lr(T(h.lr)),
        etaminus(T(h.etaminus)),
        etaplus(T(h.etaplus)),
        step_min(T(h.step_min)),
        step_max(T(h.step_max)),
        first(t == 1) {}

  void operator()(T& w, T g, T& prev, T& step_size) const {
    const T turn = g * prev;
    T size = (first ? lr : step_size) * (turn > 0 ? etaplus : turn < 0 ? etaminus : T(1));
    size = size < step_min ? step_min : size;
    size = size > step_max ? step_max : size;
    const T move = sign(g) * size, kept = turn < 0 ? T(0) : g;  // kept first, or GCC does not vectorise pairs
    w = w - (turn < 0 ? T(0) : move);
    prev = kept;
    step_size = size;
  }
};

// Lion (Chen et al. 2023, algorithm 2). Weight decay shrinks the parameter.
//   w = w - lr sign(beta1 m + (1 - beta1) g)
//   m = beta2 m + (1 - beta2) g
template <class T>
struct Lion {
  struct Hyper {
    double lr, beta1, beta2;
  };
  static constexpr Spec spec{"lion",
                             {{"lr", Range::non_negative}, {"beta1", Range::below_one}, {"beta2", Range::below_one}},
                             {"m"},
                             Decay::decoupled};

  T lr, beta1, rest1, beta2, rest2;

  Lion(const Hyper& h, std::int64_t)
      : lr(T(h.lr)), beta1(T(h.beta1)), rest1(T(1 - h.beta1)), beta2(T(h.beta2)), rest2(T(1 - h.beta2)) {}

  void operator()(T& w, T g, T& m) const {
    w = w - lr * sign(beta1 * m + rest1 * g);
    m = beta2 * m + rest2 * g;
  }
};

using SignRules = List<Rprop, Lion>;

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
