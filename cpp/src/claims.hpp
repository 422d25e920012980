// Which memory belongs to whom.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gradstep {

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

/// The memory that steps write to, sorted, so that an array that overlaps it is found quickly.
class Claims {
 public:
  void add(const Memory& memory, std::string label);

  /// Throws std::invalid_argument where two overlap.
  void sort_and_check();

  /// Throws std::invalid_argument where the memory overlaps a claim.
  void check_free(const Memory& memory, const std::string& label) const;

  /// The same, for a label that is put together only when there is a message.
  template <class Label>
  void check_free(const Memory& memory, const Label& label) const {
    if (find(memory)) check_free(memory, std::string(label));
  }

 private:
  struct Claim {
    Memory memory;
    std::string label;
  };

  const Claim* find(const Memory& memory) const;

  std::vector<Claim> claims_;
};

}  // namespace gradstep
