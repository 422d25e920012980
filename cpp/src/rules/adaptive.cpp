#include "../loops.hpp"

namespace gradstep::GRADSTEP_LEVEL {

constexpr Entries<AdaptiveRules::size> adaptive = entries_of(AdaptiveRules());

}  // namespace gradstep::GRADSTEP_LEVEL
