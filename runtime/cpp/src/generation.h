// What is to be continued, what comes of it piece by piece, and all of it.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "llama_runtime.h"
#include "tokenizer.h"

namespace llama {

// What is to be read, and how its continuation is read back.
struct Prompt {
    Ids tokens;
    bool is_chat = false;           // the answer is a text of its own, and what is known of the prompt is kept
    std::optional<int32_t> answer_end;  // the answer also ends here
};

struct Piece {
    int32_t token;
    std::string text;
    lr_finish finish;
};
// Returns false to end the generation.
using OnPiece = std::function<bool(const Piece&)>;

struct Generation {
    std::string text;
    Ids tokens, prompt_tokens;
    lr_finish finish = LR_FINISH_NONE;
    uint64_t seed = 0;
    double prefill_ms = 0, decode_ms = 0;
    std::vector<std::pair<int32_t, double>> logprobs;
};

}  // namespace llama
