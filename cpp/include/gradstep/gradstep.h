/* gradstep for C: update rules as fused, threaded kernels over memory that is yours. C99 and C++.
 *
 *   const gradstep_rule* adam = gradstep_find_rule("adam");
 *   const double hyper[] = {1e-3, 0.9, 0.999, 1e-8, 1};    // lr, beta1, beta2, eps, bias_correction
 *   gradstep_array w = {param, grad, {m, v}, size, GRADSTEP_FLOAT32, 0};
 *   gradstep_scalars scalars = gradstep_scalars_of(t, hyper, 5);
 *   if (gradstep_step(adam, &w, 1, &scalars, NULL) != GRADSTEP_OK) puts(gradstep_last_error());
 *
 * The same kernels as Python's, with the same bits. Nothing here prints, aborts or throws; a call that fails has
 * changed nothing and says why in gradstep_last_error(). Any number of threads may call at once, over memory of their
 * own. See docs/embedding.md.
 */
#ifndef GRADSTEP_H
#define GRADSTEP_H

#include <stddef.h>
#include <stdint.h>

#include "gradstep/version.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What is declared here keeps its meaning as long as this number stays. Structs may grow at their end: each tells its
 * size, and what an older caller does not have counts as 0. */
#define GRADSTEP_ABI_VERSION 1

typedef enum gradstep_status {
  GRADSTEP_OK = 0,
  GRADSTEP_INVALID = 1,   /* an argument, or a variable of the environment */
  GRADSTEP_NONFINITE = 2, /* gradients that cannot be clipped: NaN, infinity, or a norm beyond float64 */
  GRADSTEP_NO_MEMORY = 3,
  GRADSTEP_FAILED = 4 /* the system refused something else, such as a thread */
} gradstep_status;

/* Why the last call of this thread that failed did so; "" if none did. It stays until the next one fails. */
const char* gradstep_last_error(void);

/* Of the library; those of this header are GRADSTEP_VERSION and GRADSTEP_ABI_VERSION. */
const char* gradstep_version(void);
int32_t gradstep_abi_version(void);

/* Rules --------------------------------------------------------------------------------------------------------- */

typedef struct gradstep_rule gradstep_rule; /* lives as long as the library */

/* By name, as `gradstep info` lists them, such as "adam"; null: unknown. */
const gradstep_rule* gradstep_find_rule(const char* name);

/* In order of increasing complexity; null: there is none at this place. The place of a rule is not a promise. */
const gradstep_rule* gradstep_rule_at(int32_t i);
int32_t gradstep_rule_count(void);

const char* gradstep_rule_name(const gradstep_rule* rule);

/* The hyper-parameters in their order, the first of which is lr; null beyond the last. The range is in words. */
const char* gradstep_hyper_name(const gradstep_rule* rule, int32_t i);
const char* gradstep_hyper_range(const gradstep_rule* rule, int32_t i);

/* The states in their order; null beyond the last. All begin as zeros, but those that are gradients, or made of them:
 * these come with each step, and are only read. No array is a matrix here: adafactor has the second moment of each in
 * full. */
const char* gradstep_state_name(const gradstep_rule* rule, int32_t i);
int32_t gradstep_state_is_gradient(const gradstep_rule* rule, int32_t i);

/* Which state is a row of a table, one row per sample or batch, of which each step gets the one that it updates; -1:
 * none. The table is the caller's, and so are the hyper-parameters that count its rows. */
int32_t gradstep_row_state(const gradstep_rule* rule);

/* Whether weight decay shrinks the parameter instead of joining the gradient. */
int32_t gradstep_is_decoupled(const gradstep_rule* rule);

/* A step -------------------------------------------------------------------------------------------------------- */

#define GRADSTEP_MAX_STATES 4

/* The type of elements. The arithmetic is double where the parameter is, else float. Further ones may come. */
enum {
  GRADSTEP_FLOAT32 = 1,
  GRADSTEP_FLOAT64 = 2,
  GRADSTEP_BFLOAT16 = 3,
  GRADSTEP_FLOAT16 = 4,
  GRADSTEP_8_BITS = 5 /* of states alone */
};

/* The types of grad and states where they are others than that of param; 0 for that one. A gradient has at most the
 * bits of the arithmetic, and so has a state; beside double it is float at the least. Not for rules with norms or
 * tables, or with a second gradient. */
#define GRADSTEP_HELD(grad, state0, state1, state2, state3) \
  ((grad) | (state0) << 4 | (state1) << 8 | (state2) << 12 | (state3) << 16)

/* The bytes of a state of `size` elements in GRADSTEP_8_BITS: blocks of 257 for 256 elements each, the last one filled
 * up. A byte is for the exponent that all of a block share, the others are codes; without a sign where the rule never
 * makes the state negative. All bytes 0 are zeros. Made for arrays of some thousand elements and more. */
#define GRADSTEP_8_BITS_BYTES(size) (((size) + INT64_C(255)) / 256 * 257)

/* One parameter array, and what belongs to it: `size` elements each, contiguous, aligned to their type, which in 8 bits
 * is a byte. */
typedef struct gradstep_array {
  void* param;
  void* grad;                        /* only read, unless zero_grad */
  void* states[GRADSTEP_MAX_STATES]; /* in the rule's order, the rest null */
  int64_t size;
  int32_t dtype; /* of param */
  int32_t held;  /* 0, or GRADSTEP_HELD() */
} gradstep_array;

/* What a step takes beside arrays. A flag is set where it is not 0. */
typedef struct gradstep_scalars {
  size_t scalars_size; /* sizeof(gradstep_scalars) */
  size_t array_size;   /* sizeof(gradstep_array) */
  int64_t t;           /* which step this is, from 1 */
  const double* hyper; /* in the rule's order, all of them; a flag is 0 or 1 */
  int64_t hyper_count;
  double weight_decay;
  double grad_scale;        /* the gradients are first multiplied by this, 1 for none, */
  const double* clip_norm;  /* then scaled to have at most this norm, all together (INFINITY measures); null: not, */
  const double* clip_value; /* then kept within plus and minus this; null: not */
  int32_t maximize;
  int32_t zero_grad;       /* set the gradients to 0 once they have been read */
  int32_t skip_nonfinite;  /* NaN or infinity in a gradient skips the step, and is no failure */
  int32_t flush_denormals; /* denormal numbers count as 0 inside the step */
  /* How what is written becomes 16 or 8 bits: one of two neighbours by chance, which depends on the seed, t, the place
   * of the array among those of the call and that of the element; or the nearest. */
  uint64_t rounding_seed;
  int32_t round_to_nearest;
  int32_t reserved; /* must be 0 */
} gradstep_scalars;

/* Those of a plain step. */
static inline gradstep_scalars gradstep_scalars_of(int64_t t, const double* hyper, int64_t hyper_count) {
  gradstep_scalars scalars = {
      sizeof(gradstep_scalars), sizeof(gradstep_array), t, hyper, hyper_count, 0, 1, NULL, NULL, 0, 0, 0, 0, 0, 0, 0};
  return scalars;
}

/* What a step tells. */
typedef struct gradstep_result {
  size_t result_size; /* sizeof(gradstep_result) */
  double grad_norm;   /* after grad_scale; 0 where neither clip_norm nor skip_nonfinite asked for it */
  int32_t clipped;    /* by clip_norm */
  int32_t skipped;
} gradstep_result;

#define GRADSTEP_RESULT {sizeof(gradstep_result), 0, 0, 0}

/* Updates everything once, or fails and changes nothing. `result` may be null.
 *
 * Checked: pointers (null, alignment), sizes, types, all numbers, and that the param, grad and states of one array do
 * not overlap. That no two arrays overlap is checked by gradstep_check() alone, which takes longer: call it once. */
gradstep_status gradstep_step(const gradstep_rule* rule, const gradstep_array* arrays, int64_t count,
                              const gradstep_scalars* scalars, gradstep_result* result);

/* Whether gradstep_step() would take all this, the values of the gradients aside, and no two arrays overlap. */
gradstep_status gradstep_check(const gradstep_rule* rule, const gradstep_array* arrays, int64_t count,
                               const gradstep_scalars* scalars);

/* What runs it -------------------------------------------------------------------------------------------------- */

/* The most threads that a step may use, one setting for the process, Python included: GRADSTEP_NUM_THREADS, else
 * OpenMP's. 0: that variable holds no such number. The bits do not depend on it. */
int32_t gradstep_get_num_threads(void);
gradstep_status gradstep_set_num_threads(int32_t threads);

/* The instruction set in use: GRADSTEP_ISA, else the best that the processor has. Null: that variable names none that
 * runs here. The bits do not depend on it. */
const char* gradstep_get_isa(void);

/* All that were compiled, the most basic first; null beyond the last. */
const char* gradstep_isa_name(int32_t i);
int32_t gradstep_isa_is_supported(int32_t i);

/* The table ----------------------------------------------------------------------------------------------------- */

/* All functions above, for those who do not link: extension modules get it from a capsule of Python's,
 *   const gradstep_api* api = PyCapsule_Import(GRADSTEP_CAPSULE, 0);
 * Functions may be added at its end, which api_size tells. */
#define GRADSTEP_CAPSULE "gradstep._core.c_api"

typedef struct gradstep_api {
  size_t api_size;
  int32_t abi_version; /* compare it with GRADSTEP_ABI_VERSION */
  const char* (*last_error)(void);
  const char* (*version)(void);
  const gradstep_rule* (*find_rule)(const char* name);
  const gradstep_rule* (*rule_at)(int32_t i);
  int32_t (*rule_count)(void);
  const char* (*rule_name)(const gradstep_rule* rule);
  const char* (*hyper_name)(const gradstep_rule* rule, int32_t i);
  const char* (*hyper_range)(const gradstep_rule* rule, int32_t i);
  const char* (*state_name)(const gradstep_rule* rule, int32_t i);
  int32_t (*state_is_gradient)(const gradstep_rule* rule, int32_t i);
  int32_t (*row_state)(const gradstep_rule* rule);
  int32_t (*is_decoupled)(const gradstep_rule* rule);
  gradstep_status (*step)(const gradstep_rule* rule, const gradstep_array* arrays, int64_t count,
                          const gradstep_scalars* scalars, gradstep_result* result);
  gradstep_status (*check)(const gradstep_rule* rule, const gradstep_array* arrays, int64_t count,
                           const gradstep_scalars* scalars);
  int32_t (*get_num_threads)(void);
  gradstep_status (*set_num_threads)(int32_t threads);
  const char* (*get_isa)(void);
  const char* (*isa_name)(int32_t i);
  int32_t (*isa_is_supported)(int32_t i);
} gradstep_api;

const gradstep_api* gradstep_get_api(void);

#ifdef __cplusplus
}
#endif

#endif
