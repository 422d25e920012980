// Rules that move a matrix along its gradients made orthogonal. What is not elementwise is done between two rules, by
// whoever has matrix products: python/gradstep/orthogonal.py.
#pragma once

#include "rule.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

template <class T>
T next_mean(T m, T g, T rest) {
  return m + rest * (g - m);
}

// What Muon makes orthogonal. Only w, which is no parameter here, is written, so that a step which ends before the
// next rule has changed nothing. lr is every rule's first, and of no use to this one.
//   m = m + (1 - momentum) (g - m)                         (kept by the next rule)
//   w = g + momentum (m - g)  if nesterov else  m
template <class T>
struct MuonDirection {
  struct Hyper {
    double lr, momentum, nesterov;
  };
  static constexpr Spec spec{"muon_direction",
                             {{"lr", Range::non_negative}, {"momentum", Range::below_one}, {"nesterov", Range::flag}},
                             {"m"},
                             Decay::decoupled,  // of what is overwritten
                             /*row_state=*/-1,
                             /*row_sum=*/-1,
                             /*second_gradient=*/-1,
                             /*gradients=*/1,
                             /*as_it_is=*/true};

  T momentum, rest, nesterov;

  MuonDirection(const Hyper& h, std::int64_t)
      : momentum(T(h.momentum)), rest(T(1 - h.momentum)), nesterov(T(h.nesterov)) {}

  void operator()(T& w, T g, T m) const {
    const T mean = next_mean(m, g, rest);
    w = nesterov != 0 ? g + momentum * (mean - g) : mean;
  }
};

// Muon (Jordan et al. 2024), given o, the direction made orthogonal. Weight decay shrinks the parameter.
//   m = m + (1 - momentum) (g - m)
//   w = w - lr o
template <class T>
struct Muon {
  struct Hyper {
    double lr, momentum;
  };
  static constexpr Spec spec{"muon",
                             {{"lr", Range::non_negative}, {"momentum", Range::below_one}},
                             {"m", "o"},
                             Decay::decoupled,
                             /*row_state=*/-1,
                             /*row_sum=*/-1,
                             /*second_gradient=*/-1,
                             /*gradients=*/1,
                             /*as_it_is=*/true};

  T lr, rest;

  Muon(const Hyper& h, std::int64_t) : lr(T(h.lr)), rest(T(1 - h.momentum)) {}

  void operator()(T& w, T g, T& m, T o) const {
    m = next_mean(m, g, rest);
    w = w - lr * o;
  }
};

using OrthogonalRules = List<MuonDirection, Muon>;

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
