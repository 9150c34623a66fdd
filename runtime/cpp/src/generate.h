// An open bundle, and one caller's generation in it: prefill the prompt, then sample and decode until an end.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "manifest.h"
#include "options.h"
#include "session.h"
#include "stopping.h"
#include "tokenizer.h"

namespace llama {

// An opened bundle. Any number of threads may share it: after opening, nothing in it changes.
struct Model {
    Model(const std::string& bundle, const SessionOptions& options);

    // Throws LR_ERROR_TOKENIZER where the bundle has none.
    const Tokenizer& need_tokenizer() const;
    // Throws LR_ERROR_MANIFEST, naming what the bundle is for.
    void need_task(const char* task) const;

    std::string folder;
    Manifest manifest;
    std::optional<Tokenizer> tokenizer;
    std::string why_no_tokenizer;
    std::unique_ptr<Session> session;
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

// What is to be read, and how its continuation is read back.
struct Prompt {
    Ids tokens;
    bool is_chat = false;           // the answer is a text of its own, and what is known of the prompt is kept
    std::optional<int32_t> answer_end;  // the answer also ends here
};

class Generator {
public:
    explicit Generator(const Model& model) : model(model) {}

    Prompt text_prompt(std::string_view text, const SamplingOptions& options) const;
    Generation generate(const Prompt& prompt, const SamplingOptions& options, const OnPiece& on_piece);

    const Model& model;

private:
    void check_prompt(const Prompt& prompt, const SamplingOptions& options) const;
    Logits read(const Prompt& prompt, size_t new_tokens);

    std::unique_ptr<Cache> cache_;
    Ids cached_;  // the tokens that the cache holds
};

}  // namespace llama
