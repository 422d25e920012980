#include "claims.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace gradstep {

void Claims::add(const Memory& memory, std::string label) {
  if (memory.size > 0) claims_.push_back({memory, std::move(label)});
}

void Claims::sort_and_check() {
  std::sort(claims_.begin(), claims_.end(),
            [](const Claim& a, const Claim& b) { return a.memory.begin < b.memory.begin; });
  for (std::size_t i = 1; i < claims_.size(); ++i)
    if (claims_[i - 1].memory.end() > claims_[i].memory.begin) {
      const Claim &a = claims_[i - 1], &b = claims_[i];
      throw std::invalid_argument(b.label + (a.memory == b.memory ? " is the same array as " : " shares memory with ") +
                                  a.label);
    }
}

void Claims::check_free(const Memory& memory, const std::string& label) const {
  if (const Claim* claim = find(memory))
    throw std::invalid_argument(label + " shares memory with " + claim->label + ", which the step writes to");
}

const Claims::Claim* Claims::find(const Memory& memory) const {
  const auto after = std::lower_bound(claims_.begin(), claims_.end(), memory.end(),
                                      [](const Claim& a, std::uintptr_t end) { return a.memory.begin < end; });
  if (memory.size == 0 || after == claims_.begin() || std::prev(after)->memory.end() <= memory.begin) return nullptr;
  return &*std::prev(after);
}

}  // namespace gradstep
