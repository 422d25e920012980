#include "../loops.hpp"

namespace gradstep::GRADSTEP_LEVEL {

constexpr Entries<OrthogonalRules::size> orthogonal = entries_of(OrthogonalRules());

}  // namespace gradstep::GRADSTEP_LEVEL
