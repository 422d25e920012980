#include "../loops.hpp"

namespace gradstep::GRADSTEP_LEVEL {

constexpr Entries<FiniteSumRules::size> finite_sums = entries_of(FiniteSumRules());

}  // namespace gradstep::GRADSTEP_LEVEL
