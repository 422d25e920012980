// Rules with a step of its own for each parameter, from running means: Adam's relatives.
#pragma once

#include "textbook.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

// Adamax (Kingma and Ba 2015, algorithm 2): a running maximum in the place of the root. eps joins it as in PyTorch.
//   m = beta1 m + (1 - beta1) g
//   u = max(beta2 u, |g| + eps)
//   w = w - lr / (1 - beta1^t) m / u
template <class T>
struct Adamax {
  struct Hyper {
    double lr, beta1, beta2, eps;
  };
  static constexpr Spec spec{
      "adamax",
      {{"lr", Range::non_negative}, {"beta1", Range::below_one}, {"beta2", Range::below_one}, {"eps", Range::positive}},
      {"m", never_negative("u")}};

  T beta1, rest1, beta2, step, eps;

  Adamax(const Hyper& h, std::int64_t t)
      : beta1(T(h.beta1)),
        rest1(T(1 - h.beta1)),
        beta2(T(h.beta2)),
        step(T(h.lr / (1 - power(h.beta1, t)))),
        eps(T(h.eps)) {}

  void operator()(T& w, T g, T& m, T& u) const {
    m = beta1 * m + rest1 * g;
    const T decayed = beta2 * u, latest = (g < 0 ? -g : g) + eps;
    u = (decayed > latest || decayed != decayed) ? decayed : latest;  // NaN in either stays
    w = w - step * (m / u);
  }
};

// NAdam (Dozat 2016), with PyTorch's schedule of the momentum: mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2).
// mu_product is the product of all mu before this step.
//   m, v as Adam
//   P = mu_product mu_t
//   w = w - (lr (1 - mu_t) / (1 - P) g + lr mu_(t+1) / (1 - P mu_(t+1)) m) / (sqrt(v) / sqrt(1 - beta2^t) + eps)
template <class T>
struct NAdam : Adam<T> {
  struct Hyper {
    double lr, beta1, beta2, eps, momentum_decay, mu_product;
  };
  static constexpr Spec spec{"nadam",
                             {{"lr", Range::non_negative},
                              {"beta1", Range::below_one},
                              {"beta2", Range::below_one},
                              {"eps", Range::positive},
                              {"momentum_decay", Range::non_negative},
                              {"mu_product", Range::up_to_one}},
                             {"m", never_negative("v")}};

  T of_gradient, of_mean;

  NAdam(const Hyper& h, std::int64_t t) : Adam<T>({h.lr, h.beta1, h.beta2, h.eps, 1}, t) {
    const double mu = momentum_at(h, t), next = momentum_at(h, t + 1), product = h.mu_product * mu;
    of_gradient = T(h.lr * (1 - mu) / (1 - product));
    of_mean = T(h.lr * next / (1 - product * next));
  }

  static double momentum_at(const Hyper& h, std::int64_t t) {
    return h.beta1 * (1 - 0.5 * power(0.96, static_cast<double>(t) * h.momentum_decay));
  }

  void operator()(T& w, T g, T& m, T& v) const {
    this->moments(g, m, v);
    w = w - (of_gradient * g + of_mean * m) / (root(v) * this->scale + this->eps);
  }
};

template <class T>
struct NAdamDecoupled : NAdam<T> {
  using Loops = NAdam<T>;
  static constexpr Spec spec = decoupled(NAdam<T>::spec, "nadam_decoupled");
  using NAdam<T>::NAdam;
};

// RAdam (Liu et al. 2020, algorithm 2): while too little is known of v, momentum alone; eps as in PyTorch.
//   m, v as Adam
//   r_inf = 2 / (1 - beta2) - 1,  r = r_inf - 2 t beta2^t / (1 - beta2^t)
//   r > 5:  R = sqrt((r - 4) (r - 2) r_inf / ((r_inf - 4) (r_inf - 2) r)) sqrt(1 - beta2^t),  D = sqrt(v) + eps
//   else:   R = D = 1
//   w = w - lr / (1 - beta1^t) R m / D
template <class T>
struct RAdam : Adam<T> {
  struct Hyper {
    double lr, beta1, beta2, eps;
  };
  static constexpr Spec spec{
      "radam",
      {{"lr", Range::non_negative}, {"beta1", Range::below_one}, {"beta2", Range::below_one}, {"eps", Range::positive}},
      {"m", never_negative("v")}};

  T rectified;
  Flag<T> adapts;

  RAdam(const Hyper& h, std::int64_t t) : Adam<T>({h.lr, h.beta1, h.beta2, h.eps, 1}, t) {
    const double rest = 1 - power(h.beta2, t), r_inf = 2 / (1 - h.beta2) - 1;
    const double r = r_inf - 2 * static_cast<double>(t) * (1 - rest) / rest;
    const double rectifier = root((r - 4) * (r - 2) * r_inf / ((r_inf - 4) * (r_inf - 2) * r));
    adapts = r > 5;
    rectified = T(h.lr / (1 - power(h.beta1, t)) * (adapts ? rectifier * root(rest) : 1));
  }

  void operator()(T& w, T g, T& m, T& v) const {
    this->moments(g, m, v);
    w = w - rectified * (m / (adapts ? root(v) + this->eps : T(1)));
  }
};

template <class T>
struct RAdamDecoupled : RAdam<T> {
  using Loops = RAdam<T>;
  static constexpr Spec spec = decoupled(RAdam<T>::spec, "radam_decoupled");
  using RAdam<T>::RAdam;
};

// Adadelta (Zeiler 2012, algorithm 1): the units of the step come from the steps before.
//   v = rho v + (1 - rho) g g
//   delta = sqrt(a + eps) / sqrt(v + eps) g
//   a = rho a + (1 - rho) delta delta
//   w = w - lr delta
template <class T>
struct Adadelta {
  struct Hyper {
    double lr, rho, eps;
  };
  static constexpr Spec spec{"adadelta",
                             {{"lr", Range::non_negative}, {"rho", Range::below_one}, {"eps", Range::positive}},
                             {never_negative("v"), never_negative("a")}};

  T lr, rho, rest, eps;

  Adadelta(const Hyper& h, std::int64_t) : lr(T(h.lr)), rho(T(h.rho)), rest(T(1 - h.rho)), eps(T(h.eps)) {}

  void operator()(T& w, T g, T& v, T& a) const {
    v = rho * v + rest * g * g;
    const T delta = root(a + eps) / root(v + eps) * g;
    a = rho * a + rest * delta * delta;
    w = w - lr * delta;
  }
};

// AdaBelief (Zhuang et al. 2020, algorithm 2): s is the running mean square of what the mean m did not foresee. Weight
// decay shrinks the parameter, as in the authors' code.
//   m = beta1 m + (1 - beta1) g
//   s = beta2 s + (1 - beta2) (g - m)^2 + eps
//   w = w - lr / (1 - beta1^t) m / (sqrt(s) / sqrt(1 - beta2^t) + eps)
template <class T>
struct AdaBelief : Adam<T> {
  using Hyper = typename RAdam<T>::Hyper;
  static constexpr Spec spec = decoupled(variant(RAdam<T>::spec, "", {"m", never_negative("s")}), "adabelief");

  AdaBelief(const Hyper& h, std::int64_t t) : Adam<T>({h.lr, h.beta1, h.beta2, h.eps, 1}, t) {}

  void operator()(T& w, T g, T& m, T& s) const {
    m = this->beta1 * m + this->rest1 * g;
    const T surprise = g - m;
    s = this->beta2 * s + this->rest2 * surprise * surprise + this->eps;
    w = w - this->step * (m / (root(s) * this->scale + this->eps));
  }
};

// Yogi (Zaheer et al. 2018, algorithm 2): v moves by the square of the gradient, not by a share of its own size.
//   m = beta1 m + (1 - beta1) g
//   v = v - (1 - beta2) sign(v - g g) g g
//   w = w - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
template <class T>
struct Yogi : Adam<T> {
  static constexpr Spec spec = variant(Adam<T>::spec, "yogi", {"m", never_negative("v")});
  using Adam<T>::Adam;

  void operator()(T& w, T g, T& m, T& v) const {
    m = this->beta1 * m + this->rest1 * g;
    const T square = g * g;
    v = v - this->rest2 * sign(v - square) * square;
    w = w - this->step * (m / (root(v) * this->scale + this->eps));
  }
};

// AdEMAMix (Pagliardini, Ablin and Grangier 2024, algorithm 1): a second, slow mean joins the fast one. Its weight
// rises to alpha over alpha_warmup steps, and its half-life from that of beta1 to that of beta3 over beta3_warmup.
//   m = beta1 m + (1 - beta1) g,  v as Adam
//   n = n + (1 - beta3_t) (g - n)
//   w = w - lr (m / (1 - beta1^t) + alpha_t n) / (sqrt(v) / sqrt(1 - beta2^t) + eps)
template <class T>
struct AdEMAMix : Adam<T> {
  struct Hyper {
    double lr, beta1, beta2, beta3, eps, alpha, alpha_warmup, beta3_warmup;
  };
  static constexpr Spec spec{"ademamix",
                             {{"lr", Range::non_negative},
                              {"beta1", Range::below_one},
                              {"beta2", Range::below_one},
                              {"beta3", Range::below_one},
                              {"eps", Range::positive},
                              {"alpha", Range::non_negative},
                              {"alpha_warmup", Range::non_negative},
                              {"beta3_warmup", Range::non_negative}},
                             {"m", "n", never_negative("v")},
                             Decay::decoupled};

  T of_slow, rest3;

  AdEMAMix(const Hyper& h, std::int64_t t) : Adam<T>({h.lr, h.beta1, h.beta2, h.eps, 1}, t) {
    const double steps = static_cast<double>(t);
    rest3 = T(1 - beta3_at(h, steps));
    of_slow = T(h.lr * (steps < h.alpha_warmup ? h.alpha * (steps / h.alpha_warmup) : h.alpha));
  }

  // The half-life is linear in the steps.
  static double beta3_at(const Hyper& h, double t) {
    if (!(t < h.beta3_warmup)) return h.beta3;
    const double x = t / h.beta3_warmup;
    const double beta = gradstep::exp(1 / ((1 - x) / gradstep::log(h.beta1) + x / gradstep::log(h.beta3)));
    return beta < h.beta3 ? beta : h.beta3;
  }

  void operator()(T& w, T g, T& m, T& n, T& v) const {
    this->moments(g, m, v);
    n = n + rest3 * (g - n);
    w = w - (this->step * m + of_slow * n) / (root(v) * this->scale + this->eps);
  }
};

// ADOPT (Taniguchi et al. 2024, algorithm 2): the gradient is divided by the root of v as it was before it came, and
// clipped at (t - 1)^(1/4). The first step only begins v.
//   n = clip(g / max(sqrt(v), eps), (t - 1)^(1/4))
//   m = beta1 m + (1 - beta1) n
//   w = w - lr m
//   v = beta2 v + (1 - beta2) g g            (t = 1: v = g g, and nothing else)
template <class T>
struct ADOPT {
  using Hyper = typename RAdam<T>::Hyper;
  static constexpr Spec spec = variant(RAdam<T>::spec, "adopt", {"m", never_negative("v")});

  T lr, beta1, rest1, beta2, rest2, eps, limit;
  Flag<T> first;

  ADOPT(const Hyper& h, std::int64_t t)
      : lr(T(h.lr)),
        beta1(T(h.beta1)),
        rest1(T(1 - h.beta1)),
        beta2(T(h.beta2)),
        rest2(T(1 - h.beta2)),
        eps(T(h.eps)),
        limit(T(root(root(static_cast<double>(t - 1))))),
        first(t == 1) {}

  void operator()(T& w, T g, T& m, T& v) const {
    const T deviation = root(v);
    const T n = clipped(g / (deviation < eps ? eps : deviation), limit);
    const T mean = beta1 * m + rest1 * n;
    m = first ? m : mean;
    w = first ? w : w - lr * mean;
    const T square = g * g, spread = beta2 * v + rest2 * square;
    v = first ? square : spread;
  }
};

template <class T>
struct ADOPTDecoupled : ADOPT<T> {
  using Loops = ADOPT<T>;
  static constexpr Spec spec = decoupled(ADOPT<T>::spec, "adopt_decoupled");
  using ADOPT<T>::ADOPT;
};

// FTRL-Proximal (McMahan et al. 2013, algorithm 1): Adagrad's rate for each coordinate, and weights that are 0 where
// the sum of their gradients does not outweigh l1. The weights follow from z and n alone.
//   sigma = (sqrt(n + g g) - sqrt(n)) / lr
//   z = z + g - sigma w
//   n = n + g g
//   w = 0 where |z| <= l1, else -(z - sign(z) l1) / ((beta + sqrt(n)) / lr + l2)
// Where lr is 0, sigma is infinite, and z has no limit that a later step could go on from: all stays as it is.
template <class T>
struct FTRL {
  struct Hyper {
    double lr, beta, l1, l2;
  };
  static constexpr Spec spec{"ftrl",
                             {{"lr", Range::non_negative},
                              {"beta", Range::non_negative},
                              {"l1", Range::non_negative},
                              {"l2", Range::non_negative}},
                             {"z", never_negative("n")}};

  T inverse, l1, steady;
  Flag<T> rests;

  FTRL(const Hyper& h, std::int64_t)
      : inverse(T(1 / h.lr)),
        l1(T(h.l1)),
        steady(T(h.beta * (1 / h.lr) + h.l2)),
        rests(static_cast<double>(inverse) == HUGE_VAL) {}

  void operator()(T& w, T g, T& z, T& n) const {
    // Where each select comes early, compilers vectorise the loop at every level.
    const T before = root(n), sum = rests ? n : n + g * g;
    const T after = root(sum);
    const T point = rests ? z : z + (g - inverse * (after - before) * w);
    const T beyond = point - clipped(point, l1);
    const T weight = beyond == 0 ? T(0) : -(beyond / (inverse * after + steady));
    n = sum;
    z = point;
    w = rests ? w : weight;
  }
};

using AdaptiveRules = List<Adamax, NAdam, NAdamDecoupled, RAdam, RAdamDecoupled, Adadelta, AdaBelief, Yogi, AdEMAMix,
                           ADOPT, ADOPTDecoupled, FTRL>;

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
