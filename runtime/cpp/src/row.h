// One text: turns logits into tokens and tokens into text, until something ends it.
#pragma once

#include <optional>
#include <string>

#include "generation.h"
#include "options.h"
#include "sampling.h"
#include "stopping.h"
#include "tokenizer.h"

namespace llama {

class Row {
public:
    // `eos` end the model's texts; no tokenizer: tokens without a text. What is given must outlive it.
    Row(const Prompt& prompt, const SamplingOptions& options, const Tokenizer* tokenizer, const Ids& eos);

    // Chooses the next token and says what text it made safe to show.
    Piece take(const Logits& logits);
    // Whether `take` would choose the same token if every logit moved by up to `tolerance`.
    bool is_certain(const Logits& logits, double tolerance) const;

    const SamplingOptions& options;
    Generation result;

private:
    const Logits& scores(const Logits& logits, Logits& changed) const;
    std::string decode(int32_t token);

    const Tokenizer* tokenizer_;
    StopMatcher matcher_;
    std::optional<Utf8Stream> stream_;
    bool opens_text_ = false;
    Ids eos_;
};

}  // namespace llama
