// How to open a bundle, what to generate and how: checked when it comes in; FORMAT.md says what each field does.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "llama_runtime.h"

namespace llama {

constexpr size_t k_chunk_tokens = 512;

struct SessionOptions {
    int threads = 0;                       // 0: every core
    std::string onnxruntime, tensorrt;     // paths of their libraries; empty: found
    size_t chunk_tokens = k_chunk_tokens;  // the most of a prompt in one run, which bounds the memory of its scores
    bool on_tensorrt = false;              // one of the bundle's engines, instead of its graph
    std::string engine;                    // which; empty: the only one
};

struct SamplingOptions {
    double temperature = 0, top_p = 1, min_p = 0;
    double repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
    int32_t top_k = 0, no_repeat_ngram_size = 0, min_new_tokens = 0, max_new_tokens = 128, prompt_lookup_num_tokens = 0;
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

// From the C ABI's structs, NULL being the defaults; throw LR_ERROR_OPTION or LR_ERROR_ARGUMENT.
SessionOptions read_model_options(const lr_model_options* options);
SamplingOptions read_options(const lr_options* options, int64_t vocab_size);

}  // namespace llama
