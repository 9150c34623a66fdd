// Replay a bundle's known answers: does it compute here what the reference computed at export?
#pragma once

#include <string>
#include <vector>

#include "generate.h"

namespace llama {

struct SelftestReport {
    size_t answers = 0, tokens = 0, near_ties_taken = 0;
    double largest_difference = 0;
    std::vector<std::string> differences;
};

// Throws LR_ERROR_MANIFEST where the bundle has no known answers.
SelftestReport selftest(const Model& model);

}  // namespace llama
