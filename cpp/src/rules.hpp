// Every update rule, family by family. Everything else reads these lists: tables, bindings, Python, tests, benchmarks.
//
// A family is a header with its rules and a file that compiles their loops. A level has one table of each, and
// level.cpp joins them.
#pragma once

#include "level.hpp"
#include "rules/adaptive.hpp"
#include "rules/averaging.hpp"
#include "rules/finite_sums.hpp"
#include "rules/layerwise.hpp"
#include "rules/orthogonal.hpp"
#include "rules/signs.hpp"
#include "rules/sparse.hpp"
#include "rules/textbook.hpp"

namespace gradstep::GRADSTEP_LEVEL {

extern const Entries<TextbookRules::size> textbook;
extern const Entries<AdaptiveRules::size> adaptive;
extern const Entries<LayerwiseRules::size> layerwise;
extern const Entries<OrthogonalRules::size> orthogonal;
extern const Entries<SignRules::size> signs;
extern const Entries<AveragingRules::size> averaging;
extern const Entries<SparseRules::size> sparse;
extern const Entries<FiniteSumRules::size> finite_sums;

}  // namespace gradstep::GRADSTEP_LEVEL
