// Rules whose result is a mean of the points on the way.
#pragma once

#include "rule.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

// ASGD (Polyak and Juditsky 1992), as PyTorch has it: SGD whose rate decays, and the mean of its points from t0 on.
//   eta = lr / (1 + lambd lr (t - 1))^alpha
//   w = (1 - lambd eta) w - eta g
//   ax = ax + (w - ax) / max(1, t - 1 - t0)       (until t0: ax = w)
template <class T>
struct ASGD {
  struct Hyper {
    double lr, lambd, alpha, t0;
  };
  static constexpr Spec spec{"asgd",
                             {{"lr", Range::non_negative},
                              {"lambd", Range::non_negative},
                              {"alpha", Range::non_negative},
                              {"t0", Range::non_negative}},
                             {"ax"}};

  T shrink, eta, share;
  bool averages;

  ASGD(const Hyper& h, std::int64_t t) {
    const double before = static_cast<double>(t - 1), rate = h.lr / power(1 + h.lambd * h.lr * before, h.alpha);
    shrink = T(1 - h.lambd * rate);
    eta = T(rate);
    averages = before - h.t0 > 1;
    share = T(averages ? 1 / (before - h.t0) : 1);
  }

  void operator()(T& w, T g, T& ax) const {
    w = shrink * w - eta * g;
    const T mean = ax + (w - ax) * share;
    ax = averages ? mean : w;
  }
};

using AveragingRules = List<ASGD>;

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
