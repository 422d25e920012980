// What the bindings know of the memory that steps read and write.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "levels.hpp"

namespace gradstep {

constexpr const char* in_use = "another thread is stepping, saving or loading this optimizer";

/// The place of a rule in the table of every level.
inline int find_rule(const std::string& name) {
  const Table& table = baseline::table();
  for (int i = 0; i < table.size; ++i)
    if (name == table.entries[i].spec.name) return i;
  throw pybind11::key_error(name);
}

struct Memory {
  std::uintptr_t begin;
  std::int64_t size;  // elements
  bool single_precision;

  std::int64_t item_size() const { return single_precision ? 4 : 8; }
  std::uintptr_t end() const { return begin + static_cast<std::uintptr_t>(size * item_size()); }
  char* data() const { return reinterpret_cast<char*>(begin); }
  bool operator==(const Memory& other) const {
    return begin == other.begin && size == other.size && single_precision == other.single_precision;
  }
};

/// The memory that steps write to, sorted, so that an array that overlaps it is found quickly. A Label becomes a name
/// where there is a message.
template <class Label = std::string>
class Claims {
 public:
  void add(const Memory& memory, Label label) {
    if (memory.size > 0) claims_.push_back({memory, std::move(label)});
  }

  void sort_and_check() {
    std::sort(claims_.begin(), claims_.end(),
              [](const Claim& a, const Claim& b) { return a.memory.begin < b.memory.begin; });
    for (std::size_t i = 1; i < claims_.size(); ++i)
      if (claims_[i - 1].memory.end() > claims_[i].memory.begin) {
        const Claim &a = claims_[i - 1], &b = claims_[i];
        throw pybind11::value_error(std::string(b.label) +
                                    (a.memory == b.memory ? " is the same array as " : " shares memory with ") +
                                    std::string(a.label));
      }
  }

  template <class Other>
  void check_free(const Memory& memory, const Other& label) const {
    const auto after = std::lower_bound(claims_.begin(), claims_.end(), memory.end(),
                                        [](const Claim& a, std::uintptr_t end) { return a.memory.begin < end; });
    if (memory.size > 0 && after != claims_.begin() && std::prev(after)->memory.end() > memory.begin)
      throw pybind11::value_error(label + " shares memory with " + std::string(std::prev(after)->label) +
                                  ", which the step writes to");
  }

 private:
  struct Claim {
    Memory memory;
    Label label;
  };
  std::vector<Claim> claims_;
};

}  // namespace gradstep
