// An open bundle, and one caller's generation in it: prefill the prompt, then sample and decode until an end.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "generation.h"
#include "manifest.h"
#include "options.h"
#include "prefix_cache.h"
#include "session.h"
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

class Generator {
public:
    explicit Generator(const Model& model) : model(model), cache_(*model.session) {}

    Prompt text_prompt(std::string_view text, const SamplingOptions& options) const;
    Generation generate(const Prompt& prompt, const SamplingOptions& options, const OnPiece& on_piece);

    const Model& model;

private:
    void check_prompt(const Prompt& prompt, const SamplingOptions& options) const;
    double logits_move();

    PrefixCache cache_;
    std::optional<double> moves_;  // how far a logit does with the tokens of a run; measured when it is first needed
};

}  // namespace llama
