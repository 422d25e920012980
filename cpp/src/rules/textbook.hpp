// The rules of textbooks: SGD, momentum, Nesterov, Adagrad, RMSprop, Adam.
#pragma once

#include "rule.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

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
  Flag<T> first;

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
  Flag<T> first;

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
  static constexpr Spec spec{"adagrad",
                             {{"lr", Range::non_negative}, {"lr_decay", Range::non_negative}, {"eps", Range::positive}},
                             {never_negative("s")}};

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
                             {"m", never_negative("s")}};

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
  static constexpr Spec spec{"rmsprop",
                             {{"lr", Range::non_negative}, {"alpha", Range::below_one}, {"eps", Range::positive}},
                             {never_negative("v")}};

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
  static constexpr Spec spec = variant(RMSprop<T>::spec, "rmsprop_centered", {never_negative("v"), "q"});
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
                             {never_negative("v"), "b"}};

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
  static constexpr Spec spec =
      variant(RMSpropMomentum<T>::spec, "rmsprop_centered_momentum", {never_negative("v"), "q", "b"});

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
                             {"m", never_negative("v")}};

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
  static constexpr Spec spec = variant(Adam<T>::spec, "adam_amsgrad", {"m", never_negative("v"), never_negative("u")});
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
  using Loops = Adam<T>;
  static constexpr Spec spec = decoupled(Adam<T>::spec, "adamw");
  using Adam<T>::Adam;
};

template <class T>
struct AdamWAMSGrad : AdamAMSGrad<T> {
  using Loops = AdamAMSGrad<T>;
  static constexpr Spec spec = decoupled(AdamAMSGrad<T>::spec, "adamw_amsgrad");
  using AdamAMSGrad<T>::AdamAMSGrad;
};

using TextbookRules =
    List<SGD, SGDMomentum, SGDNesterov, Momentum, MomentumAverage, Nesterov, Adagrad, AdagradMomentum, RMSprop,
         RMSpropMomentum, RMSpropCentered, RMSpropCenteredMomentum, Adam, AdamAMSGrad, AdamW, AdamWAMSGrad>;

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
