// The C API. Checks everything that can be wrong before the first write, and lets nothing out but codes and messages.

#include <gradstep/gradstep.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "checks.hpp"
#include "claims.hpp"
#include "levels.hpp"
#include "step.hpp"
#include "threads.hpp"

static_assert(GRADSTEP_MAX_STATES == gradstep::max_states, "gradstep.h and kernel.hpp have the same limit");
static_assert(sizeof(gradstep_array) == 64 && sizeof(gradstep_scalars) == 104 && sizeof(gradstep_result) == 24,
              "what callers were compiled with");
static_assert(GRADSTEP_8_BITS_BYTES(1) == gradstep::held_block &&
                  GRADSTEP_8_BITS_BYTES(gradstep::state_block) == gradstep::held_block &&
                  GRADSTEP_8_BITS_BYTES(gradstep::state_block + 1) == 2 * gradstep::held_block,
              "gradstep.h and kernel.hpp have the same blocks");

namespace gradstep {
namespace {

thread_local char last_error[1024] = "";

void keep_error(const char* message) noexcept {
  std::strncpy(last_error, message, sizeof last_error - 1);  // the last character stays 0
}

/// What work() returns; where it throws, the message is kept, and `failed(status)` returned.
template <class Work, class Failed>
auto guarded(const Work& work, const Failed& failed) noexcept -> decltype(work()) {
  try {
    return work();
  } catch (const std::domain_error& error) {
    keep_error(error.what());
    return failed(GRADSTEP_NONFINITE);
  } catch (const std::invalid_argument& error) {
    keep_error(error.what());
    return failed(GRADSTEP_INVALID);
  } catch (const std::bad_alloc&) {
    keep_error("out of memory");
    return failed(GRADSTEP_NO_MEMORY);
  } catch (const std::exception& error) {
    keep_error(error.what());
    return failed(GRADSTEP_FAILED);
  }
}

/// The same, with one value for every failure.
template <class Work>
auto guarded_or(decltype(std::declval<Work>()()) failure, const Work& work) noexcept {
  return guarded(work, [=](gradstep_status) { return failure; });
}

gradstep_status status_as_it_is(gradstep_status status) { return status; }

void check_not_null(const void* pointer, const char* name) {
  if (!pointer) throw std::invalid_argument(std::string(name) + " must not be null");
}

// A rule, to the caller, is a place in the basic level's table.
const Table& catalogue() { return baseline::table(); }

const gradstep_rule* rule_at(int place) { return reinterpret_cast<const gradstep_rule*>(catalogue().entries + place); }

int place_of(const gradstep_rule* rule) {
  if (!rule) throw std::invalid_argument("rule must not be null");
  const auto offset = reinterpret_cast<std::uintptr_t>(rule) - reinterpret_cast<std::uintptr_t>(catalogue().entries);
  if (offset % sizeof(Entry*) != 0 || offset / sizeof(Entry*) >= static_cast<std::uintptr_t>(catalogue().size))
    throw std::invalid_argument("rule must come from gradstep_find_rule() or gradstep_rule_at()");
  return static_cast<int>(offset / sizeof(Entry*));
}

const Spec& spec_of(const gradstep_rule* rule) { return catalogue().entries[place_of(rule)]->spec; }

/// Checks a struct of the caller's, who may have been compiled with an older header, or with a newer one: then it must
/// not use what is not known here. `known` is its size in this version, `oldest` that in the first one.
void check_struct(const void* given, std::size_t size, std::size_t known, std::size_t oldest, const char* name) {
  if (size == known) return;
  constexpr std::size_t most = 4096;  // a size that was never set is not followed into the dark
  check_integer(name, static_cast<std::int64_t>(std::min(size, SIZE_MAX / 2)), static_cast<std::int64_t>(oldest), most);
  const auto* bytes = static_cast<const unsigned char*>(given);
  for (std::size_t i = known; i < size; ++i)
    if (bytes[i] != 0)
      throw std::invalid_argument(std::string(name) + " tells of members that gradstep " GRADSTEP_VERSION
                                                      " does not have");
}

// Of a constant size, which it nearly always has, the copy is a few instructions.
template <class Struct>
void copy_struct(Struct& to, const void* given, std::size_t size) {
  if (size >= sizeof to)
    std::memcpy(&to, given, sizeof to);
  else
    std::memcpy(&to, given, size);
}

/// Some objects, in place as long as they are few.
template <class T>
class Few {
 public:
  explicit Few(std::size_t count) : many_(count > here ? new T[count] : nullptr) {}
  T* data() { return many_ ? many_.get() : few_; }

 private:
  static constexpr std::size_t here = 4;
  T few_[here];
  std::unique_ptr<T[]> many_;
};

/// An array of the caller's.
struct Array {
  const Spec* spec;
  std::int64_t place;
  gradstep_array given;
  void* parts[2 + max_states];  // param, grad, states

  // Whether memory holds all numbers as the arithmetic has them; else check_types() looks further.
  bool is_plain() const { return given.dtype <= GRADSTEP_FLOAT64 && given.held == 0; }

  // Of types that have been checked.
  Storage storage(int part) const {
    const int held = part == 0 ? 0 : given.held >> (4 * (part - 1)) & 15;
    if (held == GRADSTEP_8_BITS) return in_8_bits(spec->states[part - 2]);
    constexpr Storage storages[] = {Storage::float32, Storage::float64, Storage::bfloat16, Storage::float16};
    return storages[(held != 0 ? held : given.dtype) - 1];
  }
  std::uintptr_t address(int part) const { return reinterpret_cast<std::uintptr_t>(parts[part]); }
  Memory memory(int part) const {
    const Storage storage = this->storage(part);
    return {address(part), is_blocked(storage) ? blocks_of(given.size) * held_block : given.size, storage};
  }
  std::string name() const { return "arrays[" + std::to_string(place) + "]"; }
};

/// What messages call a part of an array.
struct PartName {
  const Spec* spec;
  std::int64_t place;
  int part;

  operator std::string() const {
    const std::string array = "arrays[" + std::to_string(place) + "]";
    if (part < 2) return array + (part == 0 ? ".param" : ".grad");
    return array + ".states[" + std::to_string(part - 2) + "] (" + spec->states[part - 2].name + ")";
  }
};

/// The arguments of a step, checked.
class Call {
 public:
  Call(const gradstep_rule* rule, const gradstep_array* arrays, std::int64_t count, const gradstep_scalars* scalars)
      : rule_(place_of(rule)),
        spec_(catalogue().entries[rule_]->spec),
        parts_(2 + elementwise_count(spec_)),
        arrays_(arrays),
        count_(count),
        jobs_(checked_count()) {
    check_not_null(scalars, "scalars");
    check_struct(scalars, scalars->scalars_size, sizeof scalars_, offsetof(gradstep_scalars, rounding_seed),
                 "scalars->scalars_size");
    scalars_ = {};
    copy_struct(scalars_, scalars, scalars->scalars_size);
    if (scalars_.reserved != 0)
      throw std::invalid_argument("scalars->reserved must be 0, got " + std::to_string(scalars_.reserved));
    check_arrays();
    check_scalars();
  }

  /// That no two arrays overlap.
  void check_all_apart() {
    Claims<PartName> claims;
    for (std::int64_t i = 0; i < count_; ++i) claim(claims, array(i));
    claims.sort_and_check();
    for (std::int64_t i = 0; i < count_; ++i) check_free(claims, array(i));
  }

  void step(gradstep_result* result) {
    if (result) check_struct(result, result->result_size, sizeof *result, sizeof *result, "result->result_size");
    Step step{};
    step.t = scalars_.t;
    std::copy_n(scalars_.hyper, scalars_.hyper_count, step.hyper);
    step.weight_decay = scalars_.weight_decay;
    step.maximize = scalars_.maximize != 0;
    const Table& table = active_level().table();
    Constants float32, float64;
    for (std::int64_t i = 0; i < count_; ++i) {
      Job& job = jobs_.data()[i];
      const bool single_precision = job.item_size == 4;
      job.kernel = single_precision ? &table.entries[rule_]->float32 : &table.entries[rule_]->float64;
      job.constants = single_precision ? &float32 : &float64;
      if (!job.stored) continue;
      Stored& stored = stored_[static_cast<std::size_t>(i)];
      hold_as(job, stored, stored.grad, table, {scalars_.round_to_nearest == 0, scalars_.rounding_seed}, scalars_.t, i,
              treatment_.zero_grad);
    }
    const bool skips = scalars_.skip_nonfinite != 0, looks_at_second = skips && spec_.second_gradient >= 0;
    Few<Job> second(looks_at_second ? static_cast<std::size_t>(count_) : 0);
    if (looks_at_second)
      std::transform(jobs_.data(), jobs_.data() + count_, second.data(), [this](Job job) {
        job.buffers.grad = job.buffers.states[spec_.second_gradient];
        return job;
      });
    const Batch batch{jobs_.data(),
                      count_,
                      single_precision_ ? &float32 : nullptr,
                      double_precision_ ? &float64 : nullptr,
                      get_num_threads(),
                      scalars_.flush_denormals ? Denormals::flush : Denormals::keep};
    const Outcome outcome =
        take_step(batch, table, rule_, step, treatment_, skips, looks_at_second ? second.data() : nullptr);
    if (!outcome.usable && !skips)
      throw std::domain_error(why_unusable(outcome.norm, name(std::max<std::int64_t>(outcome.norm.culprit, 0), 1),
                                           "grads", treatment_, "skip_nonfinite"));
    if (!result) return;
    result->grad_norm = outcome.norm.value;
    result->clipped = outcome.clipped;
    result->skipped = !outcome.usable;
  }

 private:
  std::size_t checked_count() const {
    check_integer("count", count_, 0, std::numeric_limits<std::int32_t>::max());
    if (count_ > 0) check_not_null(arrays_, "arrays");
    return static_cast<std::size_t>(count_);
  }

  Array array(std::int64_t i) const {
    Array array;
    array.spec = &spec_;
    array.place = i;
    array.given = {};
    const char* from = reinterpret_cast<const char*>(arrays_) + static_cast<std::size_t>(i) * scalars_.array_size;
    check_struct(from, scalars_.array_size, sizeof array.given, sizeof array.given, "scalars->array_size");
    copy_struct(array.given, from, scalars_.array_size);
    array.parts[0] = array.given.param;
    array.parts[1] = array.given.grad;
    std::copy_n(array.given.states, max_states, array.parts + 2);
    return array;
  }

  PartName name(std::int64_t i, int part) const { return {&spec_, i, part}; }

  bool is_written(int part) const {
    return part == 1 ? treatment_.zero_grad : part == 0 || !is_gradient(spec_, part - 2);
  }

  void check_arrays() {
    if (scalars_.array_size % alignof(gradstep_array) != 0)
      throw std::invalid_argument("scalars->array_size must be sizeof(gradstep_array), got " +
                                  std::to_string(scalars_.array_size));
    treatment_.zero_grad = scalars_.zero_grad != 0;
    for (std::int64_t i = 0; i < count_; ++i) {
      const Array array = this->array(i);
      check_plain(array);
      if (!array.is_plain()) check_types(array);
      check_parts(array);
      const Storage arithmetic = arithmetic_of(array.storage(0));
      (arithmetic == Storage::float32 ? single_precision_ : double_precision_) = true;
      Job& job = jobs_.data()[i];
      job = {nullptr,
             nullptr,
             {array.parts[0], array.parts[1], {}},
             array.given.size,
             storage_bytes[static_cast<int>(arithmetic)]};
      std::copy_n(array.given.states, max_states, job.buffers.states);
      if (!array.is_plain()) job.stored = stored_of(array);
    }
  }

  const Stored* stored_of(const Array& array) {
    if (stored_.empty()) stored_.resize(static_cast<std::size_t>(count_));
    Stored& stored = stored_[static_cast<std::size_t>(array.place)];
    stored.param = array.storage(0);
    stored.grad = array.storage(1);
    for (int part = 2; part < parts_; ++part) stored.states[part - 2] = array.storage(part);
    return &stored;
  }

  void check_types(const Array& array) const {
    const Storage param = array.storage(0);
    if (!takes_any_storage(spec_))
      throw std::invalid_argument(array.name() +
                                  ".dtype must be GRADSTEP_FLOAT32 or GRADSTEP_FLOAT64, and held 0, for " + spec_.name);
    if (!gradient_fits(array.storage(1), param))
      throw std::invalid_argument(std::string(name(array.place, 1)) +
                                  " must not be wider than the arithmetic of param, " + "which is " + name_of(param) +
                                  ", got " + name_of(array.storage(1)));
    for (int part = 2; part < parts_; ++part)
      if (!state_fits(spec_.states[part - 2], array.storage(part), param))
        throw std::invalid_argument(std::string(name(array.place, part)) + " cannot be " +
                                    name_of(array.storage(part)) + " beside param, which is " + name_of(param));
  }

  void check_plain(const Array& array) const {
    const gradstep_array& given = array.given;
    if (given.dtype < GRADSTEP_FLOAT32 || given.dtype > GRADSTEP_FLOAT16)
      throw std::invalid_argument(
          array.name() + ".dtype must be GRADSTEP_FLOAT32, GRADSTEP_FLOAT64, " +
          "GRADSTEP_BFLOAT16 or GRADSTEP_FLOAT16, got " +
          (given.dtype == GRADSTEP_8_BITS ? "GRADSTEP_8_BITS, which is for states" : std::to_string(given.dtype)));
    if ((given.held & 15) == GRADSTEP_8_BITS)
      throw std::invalid_argument(std::string(name(array.place, 1)) +
                                  " cannot be GRADSTEP_8_BITS, which is for states");
    for (std::uint32_t rest = static_cast<std::uint32_t>(given.held), part = 1; rest != 0; rest >>= 4, ++part)
      if ((rest & 15) > GRADSTEP_8_BITS || static_cast<int>(part) >= parts_)
        throw std::invalid_argument(array.name() + ".held must be 0, or GRADSTEP_HELD() of types for grad and the " +
                                    std::to_string(parts_ - 2) + " states of " + spec_.name + ", got " +
                                    std::to_string(given.held));
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max() / 16;
    if (given.size < 0 || given.size > most) check_integer((array.name() + ".size").c_str(), given.size, 0, most);
    for (int i = parts_ - 2; i < max_states; ++i)
      if (given.states[i])
        throw std::invalid_argument(array.name() + ".states[" + std::to_string(i) + "] must be null: " + spec_.name +
                                    " has " + std::to_string(parts_ - 2) + " states");
  }

  // Some parts are written to.
  void check_parts(const Array& array) const {
    bool fits = true, apart = true;
    std::uintptr_t bytes[2 + max_states];
    for (int part = 0; part < parts_; ++part) {
      const Memory memory = array.memory(part);
      const auto item_size = static_cast<std::uintptr_t>(memory.item_size());
      const std::uintptr_t begin = memory.begin;
      bytes[part] = static_cast<std::uintptr_t>(memory.size) * item_size;
      fits &= (begin != 0 || bytes[part] == 0) && begin % item_size == 0 && begin <= UINTPTR_MAX - bytes[part];
      for (int other = 0; other < part; ++other) {
        const std::uintptr_t there = array.address(other);
        apart &= begin < there ? there - begin >= bytes[part] : begin - there >= bytes[other];
      }
    }
    if (!fits) tell_misfit(array);
    if (!apart) tell_overlap(array);
  }

  [[noreturn]] void tell_misfit(const Array& array) const {
    for (int part = 0; part < parts_; ++part) {
      const std::string name = this->name(array.place, part);
      if (array.given.size > 0) check_not_null(array.parts[part], name.c_str());
      const Memory memory = array.memory(part);
      if (memory.begin % static_cast<std::uintptr_t>(memory.item_size()) != 0)
        throw std::invalid_argument(name + " must be aligned to its " + std::to_string(memory.item_size()) +
                                    "-byte elements, got address " + std::to_string(memory.begin));
    }
    throw std::invalid_argument(array.name() + ".size is " + std::to_string(array.given.size) +
                                ", which goes beyond the memory that addresses reach");
  }

  // Throws, unless all that overlaps is only read.
  void tell_overlap(const Array& array) const {
    Claims<PartName> claims;
    claim(claims, array);
    claims.sort_and_check();
    check_free(claims, array);
  }

  void claim(Claims<PartName>& claims, const Array& array) const {
    for (int part = 0; part < parts_; ++part)
      if (is_written(part)) claims.add(array.memory(part), name(array.place, part));
  }

  void check_free(const Claims<PartName>& claims, const Array& array) const {
    for (int part = 0; part < parts_; ++part)
      if (!is_written(part)) claims.check_free(array.memory(part), name(array.place, part));
  }

  void check_scalars() {
    check_not_null(scalars_.hyper, "scalars->hyper");
    check_hypers(spec_, scalars_.hyper, scalars_.hyper_count, scalars_.weight_decay, single_precision_);
    treatment_.grad_scale = scalars_.grad_scale;
    if (scalars_.clip_norm) treatment_.clip_norm = *scalars_.clip_norm;
    if (scalars_.clip_value) treatment_.clip_value = *scalars_.clip_value;
    check_treatment(treatment_, single_precision_);
    // As in Python's SVRG.
    if (spec_.gradients > 0 && !spec_.as_it_is && (treatment_.clip_norm || treatment_.clip_value))
      throw std::invalid_argument(std::string(treatment_.clip_norm ? "clip_norm" : "clip_value") +
                                  " must be null for " + spec_.name + ", whose steps clipping would bias");
    check_integer("t", scalars_.t, 1, max_integer);
    if (scalars_.flush_denormals && !can_flush_denormals())
      throw std::invalid_argument("flush_denormals is not supported on this processor by this build");
  }

  int rule_;
  const Spec& spec_;
  int parts_;  // of an array
  const gradstep_array* arrays_;
  std::int64_t count_;
  gradstep_scalars scalars_{};
  Treatment treatment_;
  std::vector<Stored> stored_;                                // empty where all arrays are plain
  bool single_precision_ = false, double_precision_ = false;  // whether an array has it
  Few<Job> jobs_;
};

/// A member of a list that a rule has, or null beyond its end.
template <class Get>
const char* member(const gradstep_rule* rule, std::int32_t i, int (*count)(const Spec&), const Get& get) {
  return guarded_or(nullptr, [&]() -> const char* {
    const Spec& spec = spec_of(rule);
    return i >= 0 && i < count(spec) ? get(spec) : nullptr;
  });
}

const Level* level_at(std::int32_t i) {
  const Levels all = levels();
  return i >= 0 && i < all.size ? all.first + i : nullptr;
}

}  // namespace
}  // namespace gradstep

using namespace gradstep;

const char* gradstep_last_error() { return last_error; }
const char* gradstep_version() { return GRADSTEP_VERSION; }
std::int32_t gradstep_abi_version() { return GRADSTEP_ABI_VERSION; }

const gradstep_rule* gradstep_find_rule(const char* name) {
  return guarded_or(nullptr, [&]() -> const gradstep_rule* {
    check_not_null(name, "name");
    const int place = find_rule(name);
    if (place >= 0) return rule_at(place);
    std::string known;
    for (int i = 0; i < catalogue().size; ++i) known += std::string(i ? ", " : "") + catalogue().entries[i]->spec.name;
    throw std::invalid_argument("there is no rule " + quoted(name) + "; the rules are " + known);
  });
}

const gradstep_rule* gradstep_rule_at(std::int32_t i) { return i >= 0 && i < catalogue().size ? rule_at(i) : nullptr; }

std::int32_t gradstep_rule_count() { return catalogue().size; }

const char* gradstep_rule_name(const gradstep_rule* rule) {
  return guarded_or(nullptr, [&] { return spec_of(rule).name; });
}

const char* gradstep_hyper_name(const gradstep_rule* rule, std::int32_t i) {
  return member(rule, i, hyper_count, [=](const Spec& spec) { return spec.hyper[i].name; });
}

const char* gradstep_hyper_range(const gradstep_rule* rule, std::int32_t i) {
  return member(rule, i, hyper_count, [=](const Spec& spec) { return describe(spec.hyper[i].range); });
}

const char* gradstep_state_name(const gradstep_rule* rule, std::int32_t i) {
  return member(rule, i, elementwise_count, [=](const Spec& spec) { return spec.states[i].name; });
}

std::int32_t gradstep_state_is_gradient(const gradstep_rule* rule, std::int32_t i) {
  return guarded_or(0, [&]() -> std::int32_t {
    const Spec& spec = spec_of(rule);
    return i >= 0 && i < elementwise_count(spec) && is_gradient(spec, i);
  });
}

std::int32_t gradstep_row_state(const gradstep_rule* rule) {
  return guarded_or(-1, [&]() -> std::int32_t { return spec_of(rule).row_state; });
}

std::int32_t gradstep_is_decoupled(const gradstep_rule* rule) {
  return guarded_or(0, [&]() -> std::int32_t { return spec_of(rule).decay == Decay::decoupled; });
}

gradstep_status gradstep_step(const gradstep_rule* rule, const gradstep_array* arrays, std::int64_t count,
                              const gradstep_scalars* scalars, gradstep_result* result) {
  const auto work = [&] {
    const FloatMode mode(Denormals::keep);
    Call(rule, arrays, count, scalars).step(result);
    return GRADSTEP_OK;
  };
  return guarded(work, status_as_it_is);
}

gradstep_status gradstep_check(const gradstep_rule* rule, const gradstep_array* arrays, std::int64_t count,
                               const gradstep_scalars* scalars) {
  const auto work = [&] {
    const FloatMode mode(Denormals::keep);
    Call(rule, arrays, count, scalars).check_all_apart();
    return GRADSTEP_OK;
  };
  return guarded(work, status_as_it_is);
}

std::int32_t gradstep_get_num_threads() {
  return guarded_or(0, [] { return get_num_threads(); });
}

gradstep_status gradstep_set_num_threads(std::int32_t threads) {
  const auto work = [&] {
    check_integer("threads", threads, 1, thread_limit);
    set_num_threads(threads);
    return GRADSTEP_OK;
  };
  return guarded(work, status_as_it_is);
}

const char* gradstep_get_isa() {
  return guarded_or(nullptr, [] { return active_level().name; });
}

const char* gradstep_isa_name(std::int32_t i) {
  const Level* level = level_at(i);
  return level ? level->name : nullptr;
}

std::int32_t gradstep_isa_is_supported(std::int32_t i) {
  const Level* level = level_at(i);
  return level && level->supported();
}

const gradstep_api* gradstep_get_api() {
  static const gradstep_api api{sizeof(gradstep_api), GRADSTEP_ABI_VERSION,     gradstep_last_error,
                                gradstep_version,     gradstep_find_rule,       gradstep_rule_at,
                                gradstep_rule_count,  gradstep_rule_name,       gradstep_hyper_name,
                                gradstep_hyper_range, gradstep_state_name,      gradstep_state_is_gradient,
                                gradstep_row_state,   gradstep_is_decoupled,    gradstep_step,
                                gradstep_check,       gradstep_get_num_threads, gradstep_set_num_threads,
                                gradstep_get_isa,     gradstep_isa_name,        gradstep_isa_is_supported};
  return &api;
}
