#include "../loops.hpp"

namespace gradstep::GRADSTEP_LEVEL {

constexpr Entries<TextbookRules::size> textbook = entries_of(TextbookRules());
constexpr Entries<SparseRules::size> sparse = entries_of(SparseRules());  // here, because it shares loops

}  // namespace gradstep::GRADSTEP_LEVEL
