/* Logistic regression in plain C, by Adam: which of two noisy clouds is a point from? */
#include <gradstep/gradstep.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>

enum { ROWS = 400, FEATURES = 3 };
static double x[ROWS][FEATURES], y[ROWS];

/* Uniform in [-1, 1): enough for an example. */
static double noise(void) {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (double)(state >> 33) / (1u << 30) - 1;
}

static void make_data(void) {
  int i;
  for (i = 0; i < ROWS; ++i) {
    y[i] = i % 2;
    x[i][0] = 1;
    x[i][1] = 1.5 * y[i] + noise();
    x[i][2] = -y[i] + noise();
  }
}

/* Returns the mean loss, and writes its gradient. */
static double loss_and_grad(const double* w, double* grad) {
  double loss = 0;
  int i, k;
  for (k = 0; k < FEATURES; ++k) grad[k] = 0;
  for (i = 0; i < ROWS; ++i) {
    double score = 0, p;
    for (k = 0; k < FEATURES; ++k) score += w[k] * x[i][k];
    p = 1 / (1 + exp(-score));
    loss -= log(y[i] > 0 ? p : 1 - p) / ROWS;
    for (k = 0; k < FEATURES; ++k) grad[k] += (p - y[i]) * x[i][k] / ROWS;
  }
  return loss;
}

int main(void) {
  const double hyper[] = {0.1, 0.9, 0.999, 1e-8, 1}; /* lr, beta1, beta2, eps, bias_correction */
  const gradstep_rule* adam = gradstep_find_rule("adam");
  double w[FEATURES] = {0}, grad[FEATURES], m[FEATURES] = {0}, v[FEATURES] = {0};
  gradstep_array array = {w, grad, {m, v}, FEATURES, GRADSTEP_FLOAT64, 0};
  int64_t t;

  make_data();
  for (t = 1; t <= 300; ++t) {
    gradstep_scalars scalars = gradstep_scalars_of(t, hyper, 5);
    const double loss = loss_and_grad(w, grad);
    if (t == 1 || t % 100 == 0) printf("step %3d  loss %.6f\n", (int)t, loss);
    if (gradstep_step(adam, &array, 1, &scalars, NULL) != GRADSTEP_OK) {
      fprintf(stderr, "%s\n", gradstep_last_error());
      return 1;
    }
  }
  return 0;
}
