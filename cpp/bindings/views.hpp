// The memory of arrays of other libraries: through DLPack or the buffer protocol, never a copy.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>

#include "kernel.hpp"

namespace gradstep {

/// What DLPack 1.3 lays down (https://dmlc.github.io/dlpack/latest/c_api.html), as far as it is used here.
namespace dlpack {

constexpr std::int32_t cpu = 1;
constexpr std::uint8_t signed_integer = 0, unsigned_integer = 1, floating_point = 2, bfloat = 4;

struct Device {
  std::int32_t type, id;
};

struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: C-contiguous
  std::uint64_t byte_offset;
};

}  // namespace dlpack

/// Looks at an array through the exchange API of its class, which costs tens of nanoseconds. False where the class has
/// none or the array cannot be shown so. What is found holds while Python's lock is held and nothing else runs.
bool look(PyObject* object, dlpack::Tensor& tensor);

/// Whether the numbers have a minus sign that is not in their memory. PyTorch does so in views of complex numbers,
/// which are dense only where they are single elements, and look() does not see it.
bool is_negated(const pybind11::handle& object);

/// Whether the elements follow one another in the order of C.
bool is_contiguous(const dlpack::Tensor& tensor);

inline std::uintptr_t address(const dlpack::Tensor& tensor) {
  return reinterpret_cast<std::uintptr_t>(tensor.data) + static_cast<std::uintptr_t>(tensor.byte_offset);
}

inline std::int64_t element_count(const dlpack::Tensor& tensor) {
  std::int64_t size = 1;
  for (std::int32_t i = 0; i < tensor.ndim; ++i) size *= tensor.shape[i];
  return size;
}

/// Whether a tensor with elements has no memory for them: one of a wrapper class, or whose storage has been freed. Its
/// address is null, or, in a view, an offset from null; no system maps what lies below 64 KiB.
inline bool lacks_memory(const dlpack::Tensor& tensor) {
  return tensor.device.type == dlpack::cpu && address(tensor) < 65536 && element_count(tensor) > 0;
}

/// Raises for such a tensor.
[[noreturn]] void refuse_without_memory(const pybind11::handle& object, const std::string& name);

/// Whether these are numbers of so many bits, in the memory of the CPU and aligned; floating-point, unless it is said.
inline bool holds(const dlpack::Tensor& tensor, int bits, std::uint8_t code = dlpack::floating_point) {
  return tensor.device.type == dlpack::cpu && tensor.dtype.code == code && tensor.dtype.bits == bits &&
         tensor.dtype.lanes == 1 && address(tensor) % static_cast<std::uintptr_t>(bits / 8) == 0;
}

/// How they are held; nothing where no step could take them.
inline std::optional<Storage> storage_of(const dlpack::Tensor& tensor) {
  if (holds(tensor, 32)) return Storage::float32;
  if (holds(tensor, 64)) return Storage::float64;
  if (holds(tensor, 16, dlpack::bfloat)) return Storage::bfloat16;
  if (holds(tensor, 16)) return Storage::float16;
  return std::nullopt;
}

/// The same for states, which may be in 8 bits.
inline std::optional<Storage> state_storage_of(const dlpack::Tensor& tensor) {
  if (holds(tensor, 8, dlpack::signed_integer)) return Storage::int8;
  if (holds(tensor, 8, dlpack::unsigned_integer)) return Storage::uint8;
  return storage_of(tensor);
}

/// Whether an object claims to have memory that can be looked at. Numbers of NumPy do not count.
bool shows_memory(const pybind11::handle& object);

/// The memory of an object as a NumPy array, itself where it is one. Raises where there is no such thing.
pybind11::object view(const pybind11::object& object, const std::string& name);

}  // namespace gradstep
