// Steps every rule on numbers that strain it, by the C API, and prints a hash of the bits for each rule, storage and
// treatment. Nothing here depends on the processor, so the lines of two processors are the same, or something is wrong.
// NaN counts as one number: which payload and sign it has is up to the processor. flush_denormals is left out: whether
// a number is denormal is decided after rounding by x86-64, and before it by AArch64.
#include <gradstep/gradstep.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

static const struct {
  const char* name;
  int param, grad, state;
} storages[] = {{"float32", 1, 0, 0},
                {"float64", 2, 0, 0},
                {"bfloat16", 3, 0, 0},
                {"float16", 4, 0, 0},
                {"float32/bfloat16", 1, 0, 3},
                {"float32/float16", 1, 0, 4},
                {"float32/8 bits", 1, 0, 5},
                {"bfloat16/8 bits", 3, 0, 5},
                {"bfloat16/float32", 3, 0, 1},
                {"float64/float32", 2, 0, 1},
                {"float32, float16 gradient", 1, 4, 3}};
static const int bytes_of[] = {0, 4, 8, 2, 2, 1}, mantissa_of[] = {0, 23, 52, 7, 10};
static const int64_t sizes[] = {1, 3, 63, 257, 1001, 4099, 40001};  // the last for more than one thread
enum Treatment { plain, full, nearest };
static const char* const treatments[] = {"plain", "full", "nearest"};

static uint64_t seed;
static uint64_t draw() {  // SplitMix64
  uint64_t x = seed += 0x9E3779B97F4A7C15;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9, x = (x ^ x >> 27) * 0x94D049BB133111EB;
  return x ^ x >> 31;
}

// Any exponent and, of ten, one zero, denormal, infinity or NaN; or, where mild, numbers from 1/8 to 2.
static void fill(std::vector<char>& memory, int64_t size, int type, bool mild) {
  const int bytes = bytes_of[type], mantissa = mantissa_of[type], exponents = 8 * bytes - 1 - mantissa;
  for (int64_t i = 0; i < size; ++i) {
    const uint64_t infinity = ((uint64_t{1} << exponents) - 1) << mantissa, random = draw(), sign = draw() & 1;
    const uint64_t nan = infinity | uint64_t{1} << (mantissa - 1);
    const uint64_t special[] = {0, 1, 3, infinity, nan, infinity - 1, uint64_t{1} << mantissa, 0};
    uint64_t bits = random & ((uint64_t{1} << (8 * bytes - 1)) - 1);
    if (mild)
      bits = (bits & ((uint64_t{1} << mantissa) - 1)) | ((infinity >> (mantissa + 1)) - random % 4) << mantissa;
    else if (draw() % 10 == 0)
      bits = special[draw() % 8];
    if (bits > infinity) bits |= nan;  // a quiet one
    bits |= sign << (8 * bytes - 1);
    std::memcpy(memory.data() + i * bytes, &bits, bytes);  // little-endian
  }
}

static void add(uint64_t& hash, const std::vector<char>& memory, int64_t size, int type) {
  const int bytes = bytes_of[type], mantissa = mantissa_of[type];
  for (int64_t i = 0; i < size; ++i) {
    uint64_t bits = 0;
    std::memcpy(&bits, memory.data() + i * bytes, bytes);
    const uint64_t number = bits & ((uint64_t{1} << (8 * bytes - 1)) - 1);
    const uint64_t infinity = ((uint64_t{1} << (8 * bytes - 1 - mantissa)) - 1) << mantissa;
    if (mantissa && number > infinity) bits = infinity | 1;
    hash = (hash ^ bits) * 0x100000001B3;  // FNV-1a, a number at a time
  }
}

// A value in the range of a hyper-parameter, at no default.
static double value_of(const gradstep_rule* rule, int i) {
  const std::string name = gradstep_hyper_name(rule, i), range = gradstep_hyper_range(rule, i);
  if (name == "lr") return 0.0123;
  if (name.substr(0, 3) == "eps" || name == "step_min") return 1e-6;
  if (name.find("warmup") == std::string::npos && name.find("seen") == std::string::npos && range[0] == 'a')
    return range == "at most 0 and finite" ? -0.7 : name == "etaplus" ? 1.3 : 0.014 + 0.3 * i;
  return range[0] == 'i' ? 0.97 - 0.04 * i : range == "0 or 1" ? 1 : 3;
}

static std::string run(const gradstep_rule* rule, int storage, Treatment treatment) {
  const auto kind = storages[storage];
  const double clip_norm = 1.5, clip_value = 0.25;
  uint64_t hash = 0xCBF29CE484222325;
  int states = 0, hypers = 0;
  double hyper[16];
  for (; gradstep_hyper_name(rule, hypers); ++hypers) hyper[hypers] = value_of(rule, hypers);
  while (gradstep_state_name(rule, states)) ++states;
  for (const int64_t size : sizes) {
    if (size > 40000 && kind.grad + kind.state > 0 && kind.state != GRADSTEP_8_BITS) continue;
    seed = size * 1000 + storage;
    const int held = kind.grad || kind.state ? (kind.grad | kind.state * (0x11110 & ((1 << (4 * states + 4)) - 1))) : 0;
    const int types[] = {kind.param, kind.grad ? kind.grad : kind.param, kind.state ? kind.state : kind.param};
    std::vector<char> memory[6];
    for (int k = 0; k < 2 + states; ++k)
      memory[k].resize(types[k < 2 ? k : 2] == 5 ? GRADSTEP_8_BITS_BYTES(size) : size * bytes_of[types[k < 2 ? k : 2]]);
    gradstep_array array = {memory[0].data(), memory[1].data(), {}, size, kind.param, held};
    for (int k = 0; k < states; ++k) array.states[k] = memory[2 + k].data();
    fill(memory[0], size, types[0], treatment == full);
    for (int t = 1; t <= (size > 40000 ? 1 : 4); ++t) {  // emulators are slow
      fill(memory[1], size, types[1], treatment == full);
      for (int k = 0; k < states; ++k)
        if (gradstep_state_is_gradient(rule, k)) fill(memory[2 + k], size, types[2], treatment == full);
      gradstep_scalars scalars = gradstep_scalars_of(t, hyper, hypers);
      gradstep_result result = GRADSTEP_RESULT;
      if (treatment != plain) scalars.weight_decay = 0.01, scalars.maximize = 1;
      if (treatment == full) {
        scalars.grad_scale = 0.37, scalars.zero_grad = 1;
        if (std::strncmp(gradstep_rule_name(rule), "svrg", 4) != 0)
          scalars.clip_norm = &clip_norm, scalars.clip_value = &clip_value;
      }
      scalars.round_to_nearest = treatment == nearest;
      gradstep_status status = gradstep_step(rule, &array, 1, &scalars, &result);
      if (status != GRADSTEP_OK) {
        // Only a rule that takes float32 and float64 alone may refuse, so that what is compared is never nothing.
        const std::string error = gradstep_last_error();
        if (error.find("dtype must be GRADSTEP_FLOAT32 or GRADSTEP_FLOAT64") == std::string::npos) {
          std::fprintf(stderr, "%s, %s: %s\n", gradstep_rule_name(rule), kind.name, error.c_str());
          std::exit(1);
        }
        return "not supported";
      }
      std::vector<char> norm(sizeof(double));
      std::memcpy(norm.data(), &result.grad_norm, sizeof(double));
      add(hash, norm, 1, 2);
      for (int k = 0; k < 2 + states; ++k) {
        const int type = types[k < 2 ? k : 2];
        add(hash, memory[k], type == 5 ? memory[k].size() : size, type);
      }
    }
  }
  char text[20];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

int main() {
  std::fprintf(stderr, "%s, %d threads\n", gradstep_get_isa(), gradstep_get_num_threads());
  for (int i = 0; const gradstep_rule* rule = gradstep_rule_at(i); ++i)
    for (int storage = 0; storage < int(sizeof storages / sizeof *storages); ++storage)
      for (int treatment = plain; treatment <= nearest; ++treatment)
        std::printf("%s, %s, %s: %s\n", gradstep_rule_name(rule), storages[storage].name, treatments[treatment],
                    run(rule, storage, Treatment(treatment)).c_str());
}
