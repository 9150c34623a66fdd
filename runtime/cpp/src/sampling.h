// From logits to a token: pure functions in the order that FORMAT.md specifies.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "options.h"
#include "tokenizer.h"

namespace llama {

using Logits = std::vector<float>;

// exp(-40) is below half an ulp of 1, and sums start at 1: such a candidate changes no bit of them.
constexpr double k_negligible = 40;

// logit_bias -> repetition -> presence and frequency -> n-grams -> min_new_tokens, all rounded to float32.
void process(Logits& scores, const SamplingOptions& options, const Ids& prompt_tokens, const Ids& new_tokens,
             const Ids& eos_tokens);

// The largest logit, the lowest id among equals; throws LR_ERROR_SESSION where it is NaN or infinite.
int32_t greedy(const Logits& logits);

// What may be drawn, best first: ids, and running sums of their weights.
std::pair<Ids, std::vector<double>> candidates(const Logits& logits, const SamplingOptions& options);

// The next token; `index` is how many tokens this generation has had before.
int32_t sample(const Logits& logits, const SamplingOptions& options, uint64_t seed, uint64_t index);

// The chosen token, then the `count` likeliest, each with its natural log-probability.
std::vector<std::pair<int32_t, double>> token_logprobs(const Logits& logits, int32_t token, size_t count);

}  // namespace llama
