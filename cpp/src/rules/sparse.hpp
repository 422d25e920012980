// Rules for gradients that have some rows of a parameter only. They are as element-wise as all others: which rows
// there are is up to row_jobs.hpp, and the step count t is that of all rows.
#pragma once

#include "textbook.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

// Adam along rows, as PyTorch defines it (torch.optim.SparseAdam): eps joins the root before it is corrected.
//   m = m + (1 - beta1) (g - m)
//   v = v + (1 - beta2) (g g - v)
//   w = w - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)
template <class T>
struct SparseAdam {
  struct Hyper {
    double lr, beta1, beta2, eps;
  };
  static constexpr Spec spec{
      "sparse_adam",
      {{"lr", Range::non_negative}, {"beta1", Range::below_one}, {"beta2", Range::below_one}, {"eps", Range::positive}},
      {"m", never_negative("v")}};

  T rest1, rest2, step, eps;

  SparseAdam(const Hyper& h, std::int64_t t)
      : rest1(T(1 - h.beta1)),
        rest2(T(1 - h.beta2)),
        step(T(h.lr * root(1 - power(h.beta2, t)) / (1 - power(h.beta1, t)))),
        eps(T(h.eps)) {}

  void operator()(T& w, T g, T& m, T& v) const {
    m = m + rest1 * (g - m);
    v = v + rest2 * (g * g - v);
    w = w - step * (m / (root(v) + eps));
  }
};

// Adagrad along rows.
template <class T>
struct SparseAdagrad : Adagrad<T> {
  using Loops = Adagrad<T>;
  static constexpr Spec spec = variant(Adagrad<T>::spec, "sparse_adagrad", {never_negative("s")});
  using Adagrad<T>::Adagrad;
};

using SparseRules = List<SparseAdam, SparseAdagrad>;

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
