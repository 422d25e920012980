// The rules that keep gradients of a finite sum: SAG and its family.
#pragma once

#include "rule.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

// The mean of the last n gradients (Roux, Schmidt and Bach's average, over a window). y is the row of the ring that g
// takes over, d the sum of all rows, seen how many of them are in use.
//   d = d + (g - y)
//   y = g
//   w = w - lr / seen d
template <class T>
struct WindowSAG {
  struct Hyper {
    double lr, seen;
  };
  static constexpr Spec spec{"window_sag",    {{"lr", Range::non_negative}, {"seen", Range::positive}},
                             {"d", "y"},      Decay::coupled,
                             /*row_state=*/1,
                             /*row_sum=*/0};

  T step;

  WindowSAG(const Hyper& h, std::int64_t) : step(T(h.lr / h.seen)) {}

  void operator()(T& w, T g, T& d, T& y) const {
    d = d + (g - y);
    y = g;
    w = w - step * d;
  }
};

// SAG (Schmidt, Le Roux and Bach 2017): a row per sample or mini-batch, each with a weight, and exact L2
// regularisation, which is never stored in the rows. weight_seen is the sum of the weights of the rows seen.
//   d = d + row_weight (g - y)
//   y = g
//   w = w - lr / weight_seen d
template <class T>
struct SAG {
  struct Hyper {
    double lr, row_weight, weight_seen;
  };
  static constexpr Spec spec{
      "sag",           {{"lr", Range::non_negative}, {"row_weight", Range::positive}, {"weight_seen", Range::positive}},
      {"d", "y"},      Decay::decoupled,
      /*row_state=*/1,
      /*row_sum=*/0};

  T weight, step;

  SAG(const Hyper& h, std::int64_t) : weight(T(h.row_weight)), step(T(h.lr / h.weight_seen)) {}

  void operator()(T& w, T g, T& d, T& y) const {
    d = d + weight * (g - y);
    y = g;
    w = w - step * d;
  }
};

// SAGA (Defazio, Bach and Lacoste-Julien 2014): SAG with a step that is unbiased where rows are drawn uniformly.
// rows_seen counts the rows that weight_seen adds up.
//   delta = g - y
//   d = d + row_weight delta
//   y = g
//   w = w - lr ((rows_seen - 1) row_weight / weight_seen delta + d / weight_seen)
template <class T>
struct SAGA {
  struct Hyper {
    double lr, row_weight, weight_seen, rows_seen;
  };
  static constexpr Spec spec{"saga",
                             {{"lr", Range::non_negative},
                              {"row_weight", Range::positive},
                              {"weight_seen", Range::positive},
                              {"rows_seen", Range::positive}},
                             {"d", "y"},
                             Decay::decoupled,
                             /*row_state=*/1,
                             /*row_sum=*/0};

  T weight, jump, step;

  SAGA(const Hyper& h, std::int64_t)
      : weight(T(h.row_weight)),
        jump(T(h.lr * ((h.rows_seen - 1) * h.row_weight / h.weight_seen))),
        step(T(h.lr / h.weight_seen)) {}

  void operator()(T& w, T g, T& d, T& y) const {
    const T delta = g - y;
    d = d + weight * delta;
    y = g;
    w = w - (jump * delta + step * d);
  }
};

// SAGA with an L1 penalty, by its proximal operator: soft-thresholding.
//   SAGA
//   w = w - min(max(w, -lr l1), lr l1)
template <class T>
struct SAGAL1 : SAGA<T> {
  struct Hyper {
    double lr, row_weight, weight_seen, rows_seen, l1;
  };
  static constexpr Spec spec = with_hyper(SAGA<T>::spec, "saga_l1", {"l1", Range::non_negative});

  T threshold;

  SAGAL1(const Hyper& h, std::int64_t t)
      : SAGA<T>({h.lr, h.row_weight, h.weight_seen, h.rows_seen}, t), threshold(T(h.lr * h.l1)) {}

  void operator()(T& w, T g, T& d, T& y) const {
    SAGA<T>::operator()(w, g, d, y);
    w = w - clipped(w, threshold);
  }
};

// SVRG (Johnson and Zhang 2013): the gradient of a row, corrected by that of the same row at a snapshot of the
// parameters and by mu, the full gradient there.
//   w = w - lr (g - snapshot_grad + mu)
template <class T>
struct SVRG {
  struct Hyper {
    double lr;
  };
  static constexpr Spec spec{"svrg",
                             {{"lr", Range::non_negative}},
                             {"snapshot_grad", "mu"},
                             Decay::decoupled,
                             /*row_state=*/-1,
                             /*row_sum=*/-1,
                             /*second_gradient=*/0,
                             /*gradients=*/2};

  T lr;

  SVRG(const Hyper& h, std::int64_t) : lr(T(h.lr)) {}

  void operator()(T& w, T g, T snapshot_grad, T mu) const { w = w - lr * (g - snapshot_grad + mu); }
};

using FiniteSumRules = List<WindowSAG, SAG, SAGA, SAGAL1, SVRG>;

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
