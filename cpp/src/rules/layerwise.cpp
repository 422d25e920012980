#include "../loops.hpp"

namespace gradstep::GRADSTEP_LEVEL {

constexpr Entries<LayerwiseRules::size> layerwise = entries_of(LayerwiseRules());

}  // namespace gradstep::GRADSTEP_LEVEL
