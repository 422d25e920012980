// Which memory belongs to whom.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernel.hpp"

namespace gradstep {

struct Memory {
  std::uintptr_t begin;
  std::int64_t size;  // elements
  Storage storage;

  std::int64_t item_size() const { return storage_bytes[static_cast<int>(storage)]; }
  std::uintptr_t end() const { return begin + static_cast<std::uintptr_t>(size * item_size()); }
  char* data() const { return reinterpret_cast<char*>(begin); }
  bool operator==(const Memory& other) const {
    return begin == other.begin && size == other.size && storage == other.storage;
  }
};

/// The memory that steps write to, sorted, so that an array that overlaps it is found quickly. A label becomes a name
/// where there is a message.
template <class Label = std::string>
class Claims {
 public:
  void add(const Memory& memory, Label label) {
    if (memory.size > 0) claims_.push_back({memory, std::move(label)});
  }

  /// Throws std::invalid_argument where two overlap.
  void sort_and_check() {
    std::sort(claims_.begin(), claims_.end(),
              [](const Claim& a, const Claim& b) { return a.memory.begin < b.memory.begin; });
    for (std::size_t i = 1; i < claims_.size(); ++i)
      if (claims_[i - 1].memory.end() > claims_[i].memory.begin) {
        const Claim &a = claims_[i - 1], &b = claims_[i];
        const char* relation = a.memory == b.memory ? " is the same array as " : " shares memory with ";
        throw std::invalid_argument(std::string(b.label) + relation + std::string(a.label));
      }
  }

  /// Throws std::invalid_argument where the memory overlaps a claim.
  template <class Other>
  void check_free(const Memory& memory, const Other& label) const {
    const auto after = std::lower_bound(claims_.begin(), claims_.end(), memory.end(),
                                        [](const Claim& a, std::uintptr_t end) { return a.memory.begin < end; });
    if (memory.size > 0 && after != claims_.begin() && std::prev(after)->memory.end() > memory.begin)
      throw std::invalid_argument(std::string(label) + " shares memory with " + std::string(std::prev(after)->label) +
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
