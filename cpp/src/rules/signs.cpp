#include "../loops.hpp"

namespace gradstep::GRADSTEP_LEVEL {

constexpr Entries<SignRules::size> signs = entries_of(SignRules());

}  // namespace gradstep::GRADSTEP_LEVEL
