#include "../loops.hpp"

namespace gradstep::GRADSTEP_LEVEL {

constexpr Entries<AveragingRules::size> averaging = entries_of(AveragingRules());

}  // namespace gradstep::GRADSTEP_LEVEL
