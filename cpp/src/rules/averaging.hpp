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
  Flag<T> averages;

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

// Schedule-free SGD (Defazio et al. 2024, equations 3 to 5). w holds the point y at which gradients are taken, between
// the base point z and the mean x, which is not stored: y = (1 - momentum) z + momentum x. `share` is what the new z
// counts in the mean. z begins as y.
//   z' = z - lr g
//   y' = y + share (z - y) - lr (1 - momentum (1 - share)) g
template <class T>
struct ScheduleFreeSGD {
  struct Hyper {
    double lr, momentum, share;
  };
  static constexpr Spec spec{"schedule_free_sgd",
                             {{"lr", Range::non_negative}, {"momentum", Range::below_one}, {"share", Range::up_to_one}},
                             {"z"}};

  T lr, share, of_point;
  Flag<T> first;

  ScheduleFreeSGD(const Hyper& h, std::int64_t t)
      : lr(T(h.lr)), share(T(h.share)), of_point(T(h.lr * (1 - h.momentum * (1 - h.share)))), first(t == 1) {}

  void move(T& w, T direction, T& z) const {
    const T base = first ? w : z;
    w = (w + share * (base - w)) - of_point * direction;
    z = base - lr * direction;
  }

  void operator()(T& w, T g, T& z) const { move(w, g, z); }
};

// Schedule-free AdamW (Defazio et al. 2024, algorithm 1): the same with a direction of Adam's second moment, to which
// weight decay adds a share of y.
//   v = beta2 v + (1 - beta2) g g
//   d = g / (sqrt(v) / sqrt(1 - beta2^t) + eps) + weight_decay y
template <class T>
struct ScheduleFreeAdamW : ScheduleFreeSGD<T> {
  struct Hyper {
    double lr, beta1, beta2, eps, share;
  };
  static constexpr Spec spec{"schedule_free_adamw",
                             {{"lr", Range::non_negative},
                              {"beta1", Range::below_one},
                              {"beta2", Range::below_one},
                              {"eps", Range::positive},
                              {"share", Range::up_to_one}},
                             {"z", never_negative("v")},
                             Decay::in_rule};

  T beta2, rest2, scale, eps, decay;

  ScheduleFreeAdamW(const Hyper& h, std::int64_t t, double weight_decay)
      : ScheduleFreeSGD<T>({h.lr, h.beta1, h.share}, t),
        beta2(T(h.beta2)),
        rest2(T(1 - h.beta2)),
        scale(T(1 / root(1 - power(h.beta2, t)))),
        eps(T(h.eps)),
        decay(T(weight_decay)) {}

  void operator()(T& w, T g, T& z, T& v) const {
    v = beta2 * v + rest2 * g * g;
    this->move(w, g / (root(v) * scale + eps) + decay * w, z);
  }
};

using AveragingRules = List<ASGD, ScheduleFreeSGD, ScheduleFreeAdamW>;

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
