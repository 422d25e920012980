#include "stored.hpp"

#include <algorithm>
#include <cstring>

#include "checks.hpp"
#include "math.hpp"
#include "threads.hpp"

namespace gradstep {
namespace {

// The finaliser of SplitMix64 (Steele, Lea and Flood 2014): one to one, and every bit depends on every other.
std::uint64_t mixed(std::uint64_t x) {
  x ^= x >> 30;
  x *= 0xBF58476D1CE4E5B9;
  x ^= x >> 27;
  x *= 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

std::uint64_t mixed(std::uint64_t x, std::uint64_t y) { return mixed(mixed(x) + 0x9E3779B97F4A7C15 * (y + 1)); }

Storage arithmetic_of(const Job& job) { return job.item_size == 4 ? Storage::float32 : Storage::float64; }

char* at(void* memory, Storage storage, std::int64_t element) {
  const std::int64_t bytes =
      is_blocked(storage) ? element / state_block * held_block : element * storage_bytes[static_cast<int>(storage)];
  return static_cast<char*>(memory) + bytes;
}

// For the pairs from `begin` on, up to where 2^32 of them begin anew.
Rounding rounding_at(const Stored& stored, std::int64_t begin) {
  const auto pair = static_cast<std::uint64_t>(stored.first + begin) / 2;
  const std::uint64_t keys = mixed(stored.chance, pair >> 32);
  return {stored.stochastic, static_cast<std::uint32_t>(keys + pair * weyl_step),
          static_cast<std::uint32_t>(keys >> 32)};
}

void clear_gradients(const Job& job, std::int64_t begin, std::int64_t size) {
  const Storage storage = job.stored->grad;
  std::memset(at(job.buffers.grad, storage, begin), 0,
              static_cast<std::size_t>(size * storage_bytes[static_cast<int>(storage)]));
}

// Whether memory holds all states like this, of which there are some.
template <class Is>
bool states_are(const Job& job, Is is) {
  int k = 0;
  for (; k < max_states && job.buffers.states[k]; ++k)
    if (!is(job.stored->states[k])) return false;
  return k > 0;
}

// The sweep of all buffers as memory holds them, if the kernel has it.
SweepInPlace sweep_in_place(const Job& job) {
  const Stored& stored = *job.stored;
  if (!stored.stochastic || stored.param != stored.grad || stored.copy || stored.low) return nullptr;
  const Kernel& kernel = *job.kernel;
  const bool bfloat16 = stored.param == Storage::bfloat16;
  if (states_are(job, is_blocked)) return bfloat16 ? kernel.sweep_bfloat16_8_bit_states : nullptr;
  if (job.buffers.states[0] && !states_are(job, [](Storage storage) { return storage == Storage::bfloat16; }))
    return nullptr;
  return bfloat16 ? kernel.sweep_bfloat16 : stored.param == Storage::float32 ? kernel.sweep_bfloat16_states : nullptr;
}

// Whether all is in whole blocks of finite numbers.
bool in_finite_blocks(const Job& job, std::int64_t begin, std::int64_t size) {
  if (size % state_block != 0) return false;
  for (int k = 0; k < max_states && job.buffers.states[k]; ++k) {
    const char* held = at(job.buffers.states[k], job.stored->states[k], begin);
    for (std::int64_t i = 0; i < size; i += state_block, held += held_block)
      if (*held & 1) return false;
  }
  return true;
}

}  // namespace

void hold_as(Job& job, Stored& stored, Storage grad, const Table& table, const RoundingOptions& rounding,
             std::int64_t t, std::int64_t array, bool zero_grad) {
  stored.grad = grad;
  stored.converters = job.item_size == 4 ? &table.float32_converters : &table.float64_converters;
  stored.table = &table;
  stored.stochastic = rounding.stochastic;
  stored.zero_grad = zero_grad;
  stored.chance =
      mixed(mixed(rounding.seed, static_cast<std::uint64_t>(t)), static_cast<std::uint64_t>(rounding.array + array));
  stored.first = rounding.first;
  job.stored = &stored;
}

const void* gradients_of(const Job& job, std::int64_t begin, std::int64_t size, void* room) {
  const Storage storage = job.stored ? job.stored->grad : arithmetic_of(job);
  const void* const memory = at(job.buffers.grad, storage, begin);
  if (storage == arithmetic_of(job)) return memory;
  job.stored->converters->load[static_cast<int>(storage)](memory, room, size);
  return room;
}

void sweep_stored(const Job& job, std::int64_t begin, std::int64_t end) {
  constexpr int most = 2 + max_states;
  alignas(64) char room[most][stored_piece * sizeof(double)];
  alignas(64) std::uint16_t chances[stored_piece];
  const Stored& stored = *job.stored;
  const Storage arithmetic = arithmetic_of(job);
  const SweepInPlace in_place = sweep_in_place(job);
  const bool in_8_bits = job.kernel->sweep_8_bit_states && states_are(job, is_blocked);

  // The parameter and the states; the gradient is not put back.
  Buffers pieces = job.buffers;
  void** places[most] = {&pieces.param};
  void* memory[most] = {job.buffers.param};
  Storage storages[most] = {stored.param};
  int count = 1;
  bool is_narrow = !is_wide(stored.param);
  for (int k = 0; k < max_states && job.buffers.states[k]; ++k, ++count) {
    is_narrow |= !is_wide(stored.states[k]);
    places[count] = &pieces.states[k];
    memory[count] = job.buffers.states[k];
    storages[count] = stored.states[k];
  }

  const std::uint16_t* const drawn = stored.stochastic && is_narrow ? chances : nullptr;
  const int first = stored.low ? 1 : 0;  // a parameter in two parts goes a way of its own
  auto* const whole = reinterpret_cast<float*>(room[0]);

  for (; begin < end; begin += stored_piece) {
    const std::int64_t size = std::min(stored_piece, end - begin);
    if (drawn) stored.table->draw(rounding_at(stored, begin), round_up(size, state_block) / 2, chances);
    const bool in_blocks = in_8_bits && in_finite_blocks(job, begin, size);
    if (in_place && (in_8_bits ? in_blocks : size % 2 == 0)) {
      in_place(*job.constants, job.buffers, begin, size, drawn);
      if (stored.zero_grad) clear_gradients(job, begin, size);
      continue;
    }
    const int loaded = in_blocks ? 1 : count;  // states in such blocks stay where they are
    for (int k = first; k < count; ++k) {
      *places[k] = at(memory[k], storages[k], begin);
      if (storages[k] == arithmetic || k >= loaded) continue;
      stored.converters->load[static_cast<int>(storages[k])](*places[k], room[k], size);
      if (is_blocked(storages[k]))  // what fills up the last block
        std::memset(room[k] + size * 4, 0, static_cast<std::size_t>(round_up(size, state_block) - size) * 4);
      *places[k] = room[k];
    }
    auto* const high = stored.low ? static_cast<std::uint16_t*>(job.buffers.param) + begin : nullptr;
    if (stored.low) {
      stored.table->join(high, stored.low + begin, whole, size);
      pieces.param = whole;
    }
    pieces.grad = const_cast<void*>(gradients_of(job, begin, size, room[count]));
    if (in_blocks)
      job.kernel->sweep_8_bit_states(*job.constants, pieces, 0, size, drawn);
    else
      job.kernel->sweep(*job.constants, pieces, 0, size);
    if (stored.low) stored.table->split(whole, high, stored.low + begin, size);
    if (stored.copy)
      stored.converters->store[static_cast<int>(stored.copy_storage)](
          pieces.param, at(stored.copy, stored.copy_storage, begin), size, nullptr, 0);
    for (int k = first; k < loaded; ++k)
      if (storages[k] != arithmetic)
        stored.converters->store[static_cast<int>(storages[k])](room[k], at(memory[k], storages[k], begin), size, drawn,
                                                                k);
    if (stored.zero_grad && (in_blocks || stored.grad != arithmetic)) clear_gradients(job, begin, size);
  }
}

}  // namespace gradstep
