// The levels of instruction sets, the one in use, and how it was chosen.
#pragma once

#include <string>

#include "kernel.hpp"

namespace gradstep {

// Defined by level.cpp, once for each level that is built.
namespace baseline {
const Table& table();
}
namespace x86_64_v3 {
const Table& table();
}
namespace x86_64_v4 {
const Table& table();
}

struct Level {
  const char* name;
  const Table& (*table)();
  bool (*supported)();
};

struct Levels {
  const Level* first;
  int size;
};

/// All compiled levels, the most basic first.
Levels levels();

/// The level in use. Chosen at the first call: GRADSTEP_ISA if it is set, else the highest that this processor
/// supports. Throws std::invalid_argument where GRADSTEP_ISA names no level or one that cannot run here.
const Level& active_level();

/// A value of the environment for a message: what is not printable ASCII becomes a question mark.
std::string quoted(const char* text);

/// Makes the named level the one in use; throws as active_level() does. `origin` begins the message.
void use_level(const char* name, const char* origin);

}  // namespace gradstep
