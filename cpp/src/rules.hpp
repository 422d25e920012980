// Every update rule, in order of increasing complexity, and at the end the list of them.
//
// A rule is its equation. Its constructor folds the hyper-parameters and the step count t (from 1) into constants, in
// double, each cast to T once. Its call updates one element of the parameter `w` and of the states, given the
// gradient `g`. It knows no loop, no memory, no instruction set, no weight decay and no sign: see level.cpp.
//
// The order of the operations is part of the definition: python/gradstep/reference.py repeats it bit for bit.
#pragma once

#include <cstdint>

#include "kernel.hpp"
#include "math.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

// A rule that differs from another in little says so: its spec is the other's, under a name and with states of its own.
struct States {
  const char* names[max_states];
};

constexpr Spec variant(Spec base, const char* name, States states) {
  base.name = name;
  for (int i = 0; i < max_states; ++i) base.states[i] = states.names[i];
  return base;
}

constexpr Spec with_hyper(Spec base, const char* name, Hyper last) {
  base.name = name;
  int count = 0;
  while (base.hyper[count].name) ++count;
  base.hyper[count] = last;
  return base;
}

constexpr Spec decoupled(Spec base, const char* name) {
  base.name = name;
  base.decay = Decay::decoupled;
  return base;
}

// Plain stochastic gradient descent (Robbins and Monro 1951).
//   w = w - lr g
template <class T>
struct SGD {
  struct Hyper {
    double lr;
  };
  static constexpr Spec spec{"sgd", {{"lr", Range::non_negative}}, {}};

  T lr;

  SGD(const Hyper& h, std::int64_t) : lr(T(h.lr)) {}

  void operator()(T& w, T g) const { w = w - lr * g; }
};

// SGD with a momentum buffer, as PyTorch defines it: lr is applied after the buffer, the first step is undamped.
//   b = momentum b + (1 - dampening) g       (t = 1: b = g)
//   w = w - lr b
template <class T>
struct SGDMomentum {
  struct Hyper {
    double lr, momentum, dampening;
  };
  static constexpr Spec spec{
      "sgd_momentum",
      {{"lr", Range::non_negative}, {"momentum", Range::non_negative}, {"dampening", Range::up_to_one}},
      {"b"}};

  T lr, momentum, undamped;
  bool first;

  SGDMomentum(const Hyper& h, std::int64_t t)
      : lr(T(h.lr)), momentum(T(h.momentum)), undamped(T(1 - h.dampening)), first(t == 1) {}

  void operator()(T& w, T g, T& b) const {
    const T next = momentum * b + undamped * g;
    b = first ? g : next;
    w = w - lr * b;
  }
};

// SGD with PyTorch's Nesterov form (Sutskever et al. 2013, rearranged).
//   b = momentum b + g       (t = 1: b = g)
//   w = w - lr (g + momentum b)
template <class T>
struct SGDNesterov {
  struct Hyper {
    double lr, momentum;
  };
  static constexpr Spec spec{"sgd_nesterov", {{"lr", Range::non_negative}, {"momentum", Range::non_negative}}, {"b"}};

  T lr, momentum;
  bool first;

  SGDNesterov(const Hyper& h, std::int64_t t) : lr(T(h.lr)), momentum(T(h.momentum)), first(t == 1) {}

  void operator()(T& w, T g, T& b) const {
    const T next = momentum * b + g;
    b = first ? g : next;
    w = w - lr * (g + momentum * b);
  }
};

// Momentum, the textbook's velocity form (Polyak 1964): lr is applied before the velocity.
//   v = momentum v - lr g
//   w = w + v
template <class T>
struct Momentum {
  struct Hyper {
    double lr, momentum;
  };
  static constexpr Spec spec{"momentum", {{"lr", Range::non_negative}, {"momentum", Range::below_one}}, {"v"}};

  T lr, momentum;

  Momentum(const Hyper& h, std::int64_t) : lr(T(h.lr)), momentum(T(h.momentum)) {}

  void operator()(T& w, T g, T& v) const {
    v = momentum * v - lr * g;
    w = w + v;
  }
};

// Momentum, the textbook's averaging form: the velocity is a running mean of the gradients.
//   v = momentum v + (1 - momentum) g
//   w = w - lr v
template <class T>
struct MomentumAverage {
  struct Hyper {
    double lr, momentum;
  };
  static constexpr Spec spec{"momentum_average", {{"lr", Range::non_negative}, {"momentum", Range::below_one}}, {"v"}};

  T lr, momentum, rest;

  MomentumAverage(const Hyper& h, std::int64_t) : lr(T(h.lr)), momentum(T(h.momentum)), rest(T(1 - h.momentum)) {}

  void operator()(T& w, T g, T& v) const {
    v = momentum * v + rest * g;
    w = w - lr * v;
  }
};

// Nesterov's accelerated gradient (1983), the textbook's. w holds the look-ahead point x + momentum v, at which the
// gradient is taken; v and x follow v' = momentum v - lr g, x' = x + v'.
//   v' = momentum v - lr g
//   w = w + ((1 + momentum) v' - momentum v)
template <class T>
struct Nesterov {
  struct Hyper {
    double lr, momentum;
  };
  static constexpr Spec spec{"nesterov", {{"lr", Range::non_negative}, {"momentum", Range::below_one}}, {"v"}};

  T lr, momentum, ahead;

  Nesterov(const Hyper& h, std::int64_t) : lr(T(h.lr)), momentum(T(h.momentum)), ahead(T(1 + h.momentum)) {}

  void operator()(T& w, T g, T& v) const {
    const T next = momentum * v - lr * g;
    w = w + (ahead * next - momentum * v);
    v = next;
  }
};

// Adagrad (Duchi, Hazan and Singer 2011), with PyTorch's decay of lr.
//   s = s + g g
//   w = w - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)
template <class T>
struct Adagrad {
  struct Hyper {
    double lr, lr_decay, eps;
  };
  static constexpr Spec spec{
      "adagrad", {{"lr", Range::non_negative}, {"lr_decay", Range::non_negative}, {"eps", Range::positive}}, {"s"}};

  T lr, eps;

  Adagrad(const Hyper& h, std::int64_t t)
      : lr(T(h.lr / (1 + static_cast<double>(t - 1) * h.lr_decay))), eps(T(h.eps)) {}

  void operator()(T& w, T g, T& s) const {
    s = s + g * g;
    w = w - lr * (g / (root(s) + eps));
  }
};

// Adagrad with a running mean of the gradients as the numerator, as some textbooks write it.
//   m = beta m + (1 - beta) g
//   s = s + g g
//   w = w - lr / (1 + (t - 1) lr_decay) m / (sqrt(s) + eps)
template <class T>
struct AdagradMomentum {
  struct Hyper {
    double lr, lr_decay, eps, beta;
  };
  static constexpr Spec spec{"adagrad_momentum",
                             {{"lr", Range::non_negative},
                              {"lr_decay", Range::non_negative},
                              {"eps", Range::positive},
                              {"beta", Range::below_one}},
                             {"m", "s"}};

  T lr, eps, beta, rest;

  AdagradMomentum(const Hyper& h, std::int64_t t)
      : lr(T(h.lr / (1 + static_cast<double>(t - 1) * h.lr_decay))),
        eps(T(h.eps)),
        beta(T(h.beta)),
        rest(T(1 - h.beta)) {}

  void operator()(T& w, T g, T& m, T& s) const {
    m = beta * m + rest * g;
    s = s + g * g;
    w = w - lr * (m / (root(s) + eps));
  }
};

// RMSprop (Hinton 2012, lecture 6e), with PyTorch's eps outside the root. Four forms share the denominator D.
//   v = alpha v + (1 - alpha) g g
//   D = sqrt(v) + eps
//   w = w - lr g / D
template <class T>
struct RMSprop {
  struct Hyper {
    double lr, alpha, eps;
  };
  static constexpr Spec spec{
      "rmsprop", {{"lr", Range::non_negative}, {"alpha", Range::below_one}, {"eps", Range::positive}}, {"v"}};

  T lr, alpha, rest, eps;

  RMSprop(const Hyper& h, std::int64_t) : lr(T(h.lr)), alpha(T(h.alpha)), rest(T(1 - h.alpha)), eps(T(h.eps)) {}

  T denominator(T g, T& v) const {
    v = alpha * v + rest * g * g;
    return root(v) + eps;
  }

  void operator()(T& w, T g, T& v) const { w = w - lr * (g / denominator(g, v)); }
};

// RMSprop, centered: D estimates the standard deviation (Graves 2013, section 4.2).
//   q = q + (1 - alpha) (g - q)
//   D = sqrt(max(v - q q, 0)) + eps          rounding can make v - q q negative: PyTorch gives NaN there
template <class T>
struct RMSpropCentered : RMSprop<T> {
  static constexpr Spec spec = variant(RMSprop<T>::spec, "rmsprop_centered", {"v", "q"});
  using RMSprop<T>::RMSprop;

  T denominator(T g, T& v, T& q) const {
    v = this->alpha * v + this->rest * g * g;
    q = q + this->rest * (g - q);
    const T variance = v - q * q;
    return root(variance < 0 ? T(0) : variance) + this->eps;
  }

  void operator()(T& w, T g, T& v, T& q) const { w = w - this->lr * (g / denominator(g, v, q)); }
};

// RMSprop with momentum, plain or centered.
//   b = momentum b + g / D
//   w = w - lr b
template <class T>
struct RMSpropMomentum : RMSprop<T> {
  struct Hyper {
    double lr, alpha, eps, momentum;
  };
  static constexpr Spec spec{"rmsprop_momentum",
                             {{"lr", Range::non_negative},
                              {"alpha", Range::below_one},
                              {"eps", Range::positive},
                              {"momentum", Range::non_negative}},
                             {"v", "b"}};

  T momentum;

  RMSpropMomentum(const Hyper& h, std::int64_t t) : RMSprop<T>({h.lr, h.alpha, h.eps}, t), momentum(T(h.momentum)) {}

  void operator()(T& w, T g, T& v, T& b) const {
    b = momentum * b + g / this->denominator(g, v);
    w = w - this->lr * b;
  }
};

template <class T>
struct RMSpropCenteredMomentum : RMSpropCentered<T> {
  using Hyper = typename RMSpropMomentum<T>::Hyper;
  static constexpr Spec spec = variant(RMSpropMomentum<T>::spec, "rmsprop_centered_momentum", {"v", "q", "b"});

  T momentum;

  RMSpropCenteredMomentum(const Hyper& h, std::int64_t t)
      : RMSpropCentered<T>({h.lr, h.alpha, h.eps}, t), momentum(T(h.momentum)) {}

  void operator()(T& w, T g, T& v, T& q, T& b) const {
    b = momentum * b + g / this->denominator(g, v, q);
    w = w - this->lr * b;
  }
};

// Adam (Kingma and Ba 2015, algorithm 1). Without bias correction both 1 - beta^t are 1.
//   m = beta1 m + (1 - beta1) g
//   v = beta2 v + (1 - beta2) g g
//   w = w - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
template <class T>
struct Adam {
  struct Hyper {
    double lr, beta1, beta2, eps, bias_correction;
  };
  static constexpr Spec spec{"adam",
                             {{"lr", Range::non_negative},
                              {"beta1", Range::below_one},
                              {"beta2", Range::below_one},
                              {"eps", Range::positive},
                              {"bias_correction", Range::flag}},
                             {"m", "v"}};

  T beta1, rest1, beta2, rest2, step, scale, eps;

  Adam(const Hyper& h, std::int64_t t)
      : beta1(T(h.beta1)),
        rest1(T(1 - h.beta1)),
        beta2(T(h.beta2)),
        rest2(T(1 - h.beta2)),
        step(T(h.bias_correction != 0 ? h.lr / (1 - power(h.beta1, t)) : h.lr)),
        scale(T(h.bias_correction != 0 ? 1 / root(1 - power(h.beta2, t)) : 1)),
        eps(T(h.eps)) {}

  void moments(T g, T& m, T& v) const {
    m = beta1 * m + rest1 * g;
    v = beta2 * v + rest2 * g * g;
  }

  void operator()(T& w, T g, T& m, T& v) const {
    moments(g, m, v);
    w = w - step * (m / (root(v) * scale + eps));
  }
};

// Adam with amsgrad (Reddi, Kale and Kumar 2018): the largest uncorrected v so far takes the place of v.
//   u = max(u, v)
//   w = w - lr / (1 - beta1^t) m / (sqrt(u) / sqrt(1 - beta2^t) + eps)
template <class T>
struct AdamAMSGrad : Adam<T> {
  static constexpr Spec spec = variant(Adam<T>::spec, "adam_amsgrad", {"m", "v", "u"});
  using Adam<T>::Adam;

  void operator()(T& w, T g, T& m, T& v, T& u) const {
    this->moments(g, m, v);
    u = (u > v || u != u) ? u : v;  // NaN in either stays
    w = w - this->step * (m / (root(u) * this->scale + this->eps));
  }
};

// AdamW (Loshchilov and Hutter 2019): Adam, with weight decay that shrinks the parameter.
template <class T>
struct AdamW : Adam<T> {
  static constexpr Spec spec = decoupled(Adam<T>::spec, "adamw");
  using Adam<T>::Adam;
};

template <class T>
struct AdamWAMSGrad : AdamAMSGrad<T> {
  static constexpr Spec spec = decoupled(AdamAMSGrad<T>::spec, "adamw_amsgrad");
  using AdamAMSGrad<T>::AdamAMSGrad;
};

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
    T kept = w;  // NaN stays NaN
    kept = kept > threshold ? threshold : kept;
    kept = kept < -threshold ? -threshold : kept;
    w = w - kept;
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

// The one list of rules. Everything else reads it: tables, bindings, Python, tests, benchmarks.
template <template <class> class... Rules>
struct List {};

using AllRules = List<SGD, SGDMomentum, SGDNesterov, Momentum, MomentumAverage, Nesterov, Adagrad, AdagradMomentum,
                      RMSprop, RMSpropMomentum, RMSpropCentered, RMSpropCenteredMomentum, Adam, AdamAMSGrad, AdamW,
                      AdamWAMSGrad, WindowSAG, SAG, SAGA, SAGAL1, SVRG>;

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
