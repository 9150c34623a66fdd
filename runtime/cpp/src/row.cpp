#include "row.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "certainty.h"
#include "errors.h"

namespace llama {
namespace {

uint64_t fresh_seed() {
    // Below 2^53, so that every JSON reader repeats it exactly.
    std::random_device device;
    return ((static_cast<uint64_t>(device()) << 32) | device()) >> 11;
}

}  // namespace

Row::Row(const Prompt& prompt, const SamplingOptions& options, const Tokenizer* tokenizer, const Ids& eos)
    : options(options), tokenizer_(tokenizer), matcher_(options.stop) {
    result.prompt_tokens = prompt.tokens;
    result.seed = options.seed ? *options.seed : fresh_seed();
    if (!options.ignore_eos) {
        eos_ = eos;
        if (prompt.answer_end) eos_.push_back(*prompt.answer_end);
    }
    if (!tokenizer_) return;
    stream_.emplace(tokenizer_->vocabulary().invalid());
    const auto special = [&](int32_t id) { return tokenizer_->vocabulary().is_special(id); };
    opens_text_ = prompt.is_chat || std::all_of(prompt.tokens.begin(), prompt.tokens.end(), special);
}

Piece Row::take(const Logits& logits) {
    Logits changed;
    const int32_t token = sample(scores(logits, changed), options, result.seed, result.tokens.size());
    if (options.logprobs) {
        const auto told = token_logprobs(logits, token, *options.logprobs);
        result.logprobs.insert(result.logprobs.end(), told.begin(), told.end());
    }
    result.tokens.push_back(token);
    Piece piece{token, "", LR_FINISH_NONE};
    const bool ends = std::find(eos_.begin(), eos_.end(), token) != eos_.end();
    if (stream_ && !ends) piece.text += matcher_.push(decode(token));
    const bool full = result.tokens.size() == static_cast<size_t>(options.max_new_tokens);
    piece.finish = ends ? LR_FINISH_EOS : matcher_.stopped() ? LR_FINISH_STOP : full ? LR_FINISH_LENGTH : LR_FINISH_NONE;
    if (piece.finish != LR_FINISH_NONE && stream_) {
        piece.text += matcher_.push(stream_->flush());
        piece.text += matcher_.flush();
    }
    result.text += piece.text, result.finish = piece.finish;
    return piece;
}

bool Row::is_certain(const Logits& logits, double tolerance) const {
    Logits changed;
    // The penalty multiplies what it touches, and so how far that may move.
    tolerance *= std::max(options.repetition_penalty, 1 / options.repetition_penalty);
    return llama::is_certain(scores(logits, changed), options, result.seed, result.tokens.size(), tolerance);
}

// What is chosen from: the logits, or `changed` where the options change them.
const Logits& Row::scores(const Logits& logits, Logits& changed) const {
    if (!options.changes_logits()) return logits;
    changed = logits;
    process(changed, options, result.prompt_tokens, result.tokens, eos_);
    const auto largest = [](const Logits& all) { return *std::max_element(all.begin(), all.end()); };
    if (largest(changed) == -HUGE_VALF && largest(logits) != -HUGE_VALF) {
        throw Error(LR_ERROR_OPTION, "no token is left after " + std::to_string(result.tokens.size()) +
                                         " new ones: bias, n-grams and minimum length together forbid all");
    }
    return changed;
}

std::string Row::decode(int32_t token) {
    const Vocabulary& vocabulary = tokenizer_->vocabulary();
    if (vocabulary.is_special(token)) return {};
    const std::string bytes = opens_text_ ? vocabulary.first_token_bytes(token) : vocabulary.token_bytes(token);
    opens_text_ = false;
    return stream_->push(bytes);
}

}  // namespace llama
