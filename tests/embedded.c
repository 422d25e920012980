/* Ten steps in C99, whose bits tests/test_c_api.py compares with Python's. */
#include <gradstep/gradstep.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>

enum { SIZE = 1000 };
static float w[SIZE], g[SIZE], m[SIZE], v[SIZE], u[SIZE];

int main(void) {
  const double hyper[] = {0.01, 0.9, 0.999, 1e-8, 1};
  const gradstep_rule* rule = gradstep_find_rule("adam_amsgrad");
  gradstep_array array = {w, g, {m, v, u}, SIZE, GRADSTEP_FLOAT32, 0};
  gradstep_result result = GRADSTEP_RESULT;
  const int sizes[] = {0, 1, 256, 257, INT_MAX};
  int64_t t;
  int i;
  printf("%zu %zu %zu %zu\n", sizeof array, sizeof(gradstep_scalars), sizeof result, sizeof(gradstep_api));
  for (i = 0; i < 5; ++i) printf("%" PRId64 " ", GRADSTEP_8_BITS_BYTES(sizes[i]));
  puts("");
  for (i = 0; i < SIZE; ++i) w[i] = (float)(-1 + i * (2.0 / (SIZE - 1)));
  w[SIZE - 1] = 1;
  for (t = 1; t <= 10; ++t) {
    gradstep_scalars scalars = gradstep_scalars_of(t, hyper, 5);
    for (i = 0; i < SIZE; ++i) g[i] = w[i] * 0.5f;
    if (gradstep_step(rule, &array, 1, &scalars, &result) != GRADSTEP_OK) {
      puts(gradstep_last_error());
      return 1;
    }
  }
  for (i = 0; i < SIZE; ++i) printf("%.9g\n", w[i]);
  return 0;
}
