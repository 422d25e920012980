// Jobs of which memory holds some buffers in fewer bits than the arithmetic has.
#pragma once

#include "kernel.hpp"

namespace gradstep {

struct Job;

/// What such a job has beside its buffers. Each of them says how it is held, or that it is as the arithmetic has it.
struct Stored {
  Storage param, grad, states[max_states];
  const Converters* converters;  // of the arithmetic, at the level in use
  const Table* table;            // of that level
  void* copy;                    // of the parameter, in 16 bits, for others to read; null: there is none
  Storage copy_storage;
  std::uint16_t* low;  // what a parameter of float32 differs by from its bfloat16, which is `param`; null: it does not
  bool stochastic, zero_grad;
  std::uint64_t chance;  // of the seed, the step and the array
  std::int64_t first;    // the place of the first element in the whole array, where this is a part of one
};

/// How what is written becomes 16 or 8 bits. Where parameters are parts of arrays, the number of the first of these,
/// and the place of its part.
struct RoundingOptions {
  bool stochastic = false;
  std::uint64_t seed = 0;
  std::int64_t array = 0, first = 0;
};

/// Tells a job how its buffers are held. Of `stored`, the parameter and the states have been filled in; it lives as
/// long as the job. `array` is the place of the parameter among all.
void hold_as(Job& job, Stored& stored, Storage grad, const Table& table, const RoundingOptions& rounding,
             std::int64_t t, std::int64_t array, bool zero_grad);

/// Sweeps a range piece by piece: brings it to where the arithmetic can have it, lets the kernel sweep it there, and
/// puts back what was updated. Neither the rule nor its kernel knows. `begin` and Stored::first are multiples of
/// stored_piece.
void sweep_stored(const Job& job, std::int64_t begin, std::int64_t end);

/// The gradients of at most block_size elements from `begin` on, in `room` where they have to be brought there.
const void* gradients_of(const Job& job, std::int64_t begin, std::int64_t size, void* room);

}  // namespace gradstep
