// Rules that take for each array a step in proportion to its norm: by a factor of its own, the trust ratio.
//
// Such a rule has two more functions. `direction` brings the states up to date and returns what the ratio compares with
// the parameter; it is called for all elements before the ratio is known. `trust` makes the ratio of both norms, over
// so many elements, and `rely` folds it in. Where a norm is 0, not finite, or, in float64, beyond what squares can
// hold, the ratio is 1.
#pragma once

#include <cfloat>
#include <limits>

#include "rule.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

inline bool is_usable(double norm) { return norm > 0 && norm <= DBL_MAX; }

// LARS (You, Gitman and Ginsburg 2017, algorithm 1 and equation 6). |x| is the L2 norm over one array.
//   trust = trust_coefficient |w| / (|g| + weight_decay |w|)
//   v = momentum v + lr trust (g + weight_decay w)
//   w = w - v
template <class T>
struct LARS {
  struct Hyper {
    double lr, momentum, trust_coefficient;
  };
  static constexpr Spec spec =
      with_trust({"lars",
                  {{"lr", Range::non_negative}, {"momentum", Range::below_one}, {"trust_coefficient", Range::positive}},
                  {"v"}},
                 7);

  double lr, trust_coefficient, weight_decay;
  T momentum, decay, rate;

  LARS(const Hyper& h, std::int64_t, double weight_decay)
      : lr(h.lr),
        trust_coefficient(h.trust_coefficient),
        weight_decay(weight_decay),
        momentum(T(h.momentum)),
        decay(T(weight_decay)),
        rate(T(h.lr)) {}

  T direction(T, T g, T&) const { return g; }

  double trust(double w_norm, double g_norm, std::int64_t) const {
    if (!is_usable(w_norm) || !is_usable(g_norm)) return 1;
    return trust_coefficient * w_norm / (g_norm + weight_decay * w_norm);
  }

  void rely(double trust) { rate = T(lr * trust); }

  void operator()(T& w, T g, T& v) const {
    v = momentum * v + rate * (g + decay * w);
    w = w - v;
  }
};

// LAMB (You et al. 2020, algorithm 2, phi the identity).
//   m = beta1 m + (1 - beta1) g
//   v = beta2 v + (1 - beta2) g g
//   d = m / (1 - beta1^t) / (sqrt(v) / sqrt(1 - beta2^t) + eps) + weight_decay w
//   w = w - lr |w| / |d| d
template <class T>
struct LAMB {
  struct Hyper {
    double lr, beta1, beta2, eps, bias_correction;
  };
  static constexpr Spec spec = with_trust({"lamb",
                                           {{"lr", Range::non_negative},
                                            {"beta1", Range::below_one},
                                            {"beta2", Range::below_one},
                                            {"eps", Range::positive},
                                            {"bias_correction", Range::flag}},
                                           {"m", never_negative("v")}},
                                          10);

  double lr;
  T beta1, rest1, beta2, rest2, correction, scale, eps, decay, rate;

  LAMB(const Hyper& h, std::int64_t t, double weight_decay)
      : lr(h.lr),
        beta1(T(h.beta1)),
        rest1(T(1 - h.beta1)),
        beta2(T(h.beta2)),
        rest2(T(1 - h.beta2)),
        correction(T(h.bias_correction != 0 ? 1 / (1 - power(h.beta1, t)) : 1)),
        scale(T(h.bias_correction != 0 ? 1 / root(1 - power(h.beta2, t)) : 1)),
        eps(T(h.eps)),
        decay(T(weight_decay)),
        rate(T(h.lr)) {}

  T towards(T w, T m, T v) const { return correction * m / (root(v) * scale + eps) + decay * w; }

  T direction(T w, T g, T& m, T& v) const {
    m = beta1 * m + rest1 * g;
    v = beta2 * v + rest2 * g * g;
    return towards(w, m, v);
  }

  double trust(double w_norm, double d_norm, std::int64_t) const {
    return is_usable(w_norm) && is_usable(d_norm) ? w_norm / d_norm : 1;
  }

  void rely(double trust) { rate = T(lr * trust); }

  void operator()(T& w, T, T& m, T& v) const { w = w - rate * towards(w, m, v); }
};

// Adafactor (Shazeer and Stern 2018, algorithms 4 and 5), as PyTorch has it, with means in the place of sums. The
// second moment of a matrix is the product of a factor per row and one per column, V = r c / max(mean of r, eps1);
// other arrays have it in full, V = v. rms(x) is |x| / sqrt(size).
//   b = t^beta2_decay
//   v = v + b (g g - v)                          r, c: the same with the means of g g along rows, down columns
//   d = g / sqrt(max(V, eps1^2))
//   w = (1 - lr weight_decay) w - max(eps2, rms(w)) min(lr, 1 / sqrt(t)) / max(1, rms(d) / clip) d
template <class T>
struct Adafactor {
  struct Hyper {
    double lr, beta2_decay, eps1, eps2, d;
  };
  static constexpr Spec spec =
      factored(with_trust({"adafactor",
                           {{"lr", Range::non_negative},
                            {"beta2_decay", Range::non_positive},
                            {"eps1", Range::non_negative},
                            {"eps2", Range::non_negative},
                            {"d", Range::positive}},
                           {never_negative("variance"), never_negative("row_var"), never_negative("col_var")}},
                          6),
               1);

  double eps2, clip, largest_step;
  T share, eps1, floor, shrink, rate;

  Adafactor(const Hyper& h, std::int64_t t, double weight_decay)
      : eps2(h.eps2),
        clip(h.d),
        largest_step(h.lr < 1 / root(double(t)) ? h.lr : 1 / root(double(t))),
        share(T(power(double(t), h.beta2_decay))),
        eps1(h.eps1 == 0 ? std::numeric_limits<T>::epsilon() : not_denormal(T(h.eps1))),
        floor(not_denormal(eps1 * eps1)),
        shrink(T(1 - h.lr * weight_decay)),
        rate(0) {}

  static T not_denormal(T x) { return x < std::numeric_limits<T>::min() ? std::numeric_limits<T>::min() : x; }

  T averaged(T variance, T square) const { return variance + share * (square - variance); }
  T at_least_eps(T mean) const { return mean < eps1 ? eps1 : mean; }
  T towards(T g, T variance) const { return g / root(variance < floor ? floor : variance); }

  T direction(T, T g, T& v) const {
    v = averaged(v, g * g);
    return towards(g, v);
  }

  double trust(double w_norm, double d_norm, std::int64_t size) const {
    const double scale = 1 / root(double(size)), rms = scale * w_norm, excess = scale * d_norm / clip;
    const double step = is_usable(rms) && rms > eps2 ? rms : eps2;
    return largest_step * step / (is_usable(excess) && excess > 1 ? excess : 1);
  }

  void rely(double trust) { rate = T(trust); }

  void operator()(T& w, T g, T& v) const { w = shrink * w - rate * towards(g, v); }
};

using LayerwiseRules = List<LARS, LAMB, Adafactor>;

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
