// What to generate and how: checked when it comes in; FORMAT.md says what each field does.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "llama_runtime.h"

namespace llama {

struct SamplingOptions {
    double temperature = 0, top_p = 1, min_p = 0;
    double repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
    int32_t top_k = 0, no_repeat_ngram_size = 0, min_new_tokens = 0, max_new_tokens = 128;
    std::optional<uint64_t> seed;
    std::optional<size_t> logprobs;
    bool ignore_eos = false, parse_special = false;
    std::vector<std::string> stop;
    std::vector<std::pair<int32_t, float>> bias;

    bool changes_logits() const {
        return !bias.empty() || repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0 ||
               no_repeat_ngram_size != 0 || min_new_tokens != 0;
    }
};

// From the C ABI's struct, NULL being the defaults; throws LR_ERROR_OPTION or LR_ERROR_ARGUMENT.
SamplingOptions read_options(const lr_options* options, int64_t vocab_size);

}  // namespace llama
