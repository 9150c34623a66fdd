// Whether a choice is so clear that rounding cannot change it.
#pragma once

#include "options.h"
#include "sampling.h"

namespace llama {

// Whether `sample` chooses the same token however each logit moves by up to `tolerance`. Errs to false alone.
bool is_certain(const Logits& logits, const SamplingOptions& options, uint64_t seed, uint64_t index, double tolerance);

}  // namespace llama
