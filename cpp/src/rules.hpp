// Every update rule, family by family, and the list of them all. Everything else reads that: tables, bindings, Python,
// tests, benchmarks.
#pragma once

#include "rules/adaptive.hpp"
#include "rules/averaging.hpp"
#include "rules/finite_sums.hpp"
#include "rules/layerwise.hpp"
#include "rules/orthogonal.hpp"
#include "rules/signs.hpp"
#include "rules/sparse.hpp"
#include "rules/textbook.hpp"

namespace gradstep::GRADSTEP_LEVEL {
namespace {

using AllRules = decltype(TextbookRules{} + AdaptiveRules{} + LayerwiseRules{} + OrthogonalRules{} + SignRules{} +
                          AveragingRules{} + SparseRules{} + FiniteSumRules{});

}  // namespace
}  // namespace gradstep::GRADSTEP_LEVEL
