#include "generate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>

#include "errors.h"

namespace llama {
namespace {

using Clock = std::chrono::steady_clock;

double ms(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double, std::milli>(to - from).count();
}

uint64_t fresh_seed() {
    // Below 2^53, so that every JSON reader repeats it exactly.
    std::random_device device;
    return ((static_cast<uint64_t>(device()) << 32) | device()) >> 11;
}

// Turns logits into tokens and tokens into text, until something ends it.
class Row {
public:
    Row(const Model& model, const Prompt& prompt, const SamplingOptions& options)
        : options_(options), tokenizer_(model.tokenizer ? &*model.tokenizer : nullptr), matcher_(options.stop) {
        result.prompt_tokens = prompt.tokens;
        result.seed = options.seed ? *options.seed : fresh_seed();
        if (!options.ignore_eos) {
            eos_ = model.manifest.eos;
            if (prompt.answer_end) eos_.push_back(*prompt.answer_end);
        }
        if (!tokenizer_) return;
        stream_.emplace(tokenizer_->vocabulary().invalid());
        const auto special = [&](int32_t id) { return tokenizer_->vocabulary().is_special(id); };
        opens_text_ = prompt.is_chat || std::all_of(prompt.tokens.begin(), prompt.tokens.end(), special);
    }

    Piece take(const Logits& logits) {
        const int32_t token = choose(logits);
        if (options_.logprobs) {
            const auto told = token_logprobs(logits, token, *options_.logprobs);
            result.logprobs.insert(result.logprobs.end(), told.begin(), told.end());
        }
        result.tokens.push_back(token);
        Piece piece{token, "", LR_FINISH_NONE};
        const bool ends = std::find(eos_.begin(), eos_.end(), token) != eos_.end();
        if (stream_ && !ends) piece.text += matcher_.push(decode(token));
        const bool full = result.tokens.size() == static_cast<size_t>(options_.max_new_tokens);
        piece.finish = ends ? LR_FINISH_EOS : matcher_.stopped() ? LR_FINISH_STOP : full ? LR_FINISH_LENGTH : LR_FINISH_NONE;
        if (piece.finish != LR_FINISH_NONE && stream_) {
            piece.text += matcher_.push(stream_->flush());
            piece.text += matcher_.flush();
        }
        result.text += piece.text, result.finish = piece.finish;
        return piece;
    }

    Generation result;

private:
    int32_t choose(const Logits& logits) {
        const uint64_t index = result.tokens.size();
        if (!options_.changes_logits()) return sample(logits, options_, result.seed, index);
        Logits scores = logits;
        process(scores, options_, result.prompt_tokens, result.tokens, eos_);
        const auto largest = [](const Logits& all) { return *std::max_element(all.begin(), all.end()); };
        if (largest(scores) == -HUGE_VALF && largest(logits) != -HUGE_VALF) {
            throw Error(LR_ERROR_OPTION, "no token is left after " + std::to_string(index) +
                                             " new ones: bias, n-grams and minimum length together forbid all");
        }
        return sample(scores, options_, result.seed, index);
    }

    std::string decode(int32_t token) {
        const Vocabulary& vocabulary = tokenizer_->vocabulary();
        if (vocabulary.is_special(token)) return {};
        const std::string bytes = opens_text_ ? vocabulary.first_token_bytes(token) : vocabulary.token_bytes(token);
        opens_text_ = false;
        return stream_->push(bytes);
    }

    const SamplingOptions& options_;
    const Tokenizer* tokenizer_;
    StopMatcher matcher_;
    std::optional<Utf8Stream> stream_;
    bool opens_text_ = false;
    Ids eos_;
};

}  // namespace

Model::Model(const std::string& bundle, const SessionOptions& options)
    : folder(bundle), manifest(read_manifest(bundle)) {
    check_structure(folder, manifest);
    if (!manifest.tokenizer) {
        why_no_tokenizer = "the bundle has no tokenizer";
    } else if (!manifest.lists("tokenizer.bin")) {
        why_no_tokenizer = "the bundle has no tokenizer.bin";
    } else {
        const auto first_eos = manifest.eos.empty() ? std::nullopt : std::optional<int32_t>(manifest.eos[0]);
        if (manifest.tokenizer->add_eos && !first_eos) {
            throw Error(LR_ERROR_TOKENIZER, folder + ": add_eos is true, the manifest has no id for it", k_copy_again);
        }
        tokenizer.emplace(Vocabulary::read(folder + "/tokenizer.bin"), manifest.tokenizer->add_bos ? manifest.bos : std::nullopt,
                          manifest.tokenizer->add_eos ? first_eos : std::nullopt);
    }
    session = open_session(folder, manifest, options);
}

const Tokenizer& Model::need_tokenizer() const {
    if (!tokenizer) throw Error(LR_ERROR_TOKENIZER, why_no_tokenizer, "give token ids, without stop strings");
    return *tokenizer;
}

void Model::need_task(const char* task) const {
    const bool embeds = std::string(task) == "feature-extraction" && !manifest.hidden_state().empty();
    if (manifest.task != task && !embeds) {
        throw Error(LR_ERROR_MANIFEST, folder + ": the bundle's task is " + manifest.task + ", needs " + task,
                    "open a bundle of that task");
    }
}

Prompt Generator::text_prompt(std::string_view text, const SamplingOptions& options) const {
    return {model.need_tokenizer().encode(text, !options.parse_special, options.parse_special), options.parse_special, {}};
}

void Generator::check_prompt(const Prompt& prompt, const SamplingOptions& options) const {
    model.need_task("text-generation");
    if (!options.stop.empty()) model.need_tokenizer();
    if (prompt.tokens.empty()) throw Error(LR_ERROR_PROMPT, "the prompt is empty, and the model has no token that opens a text");
    const int64_t vocab = model.manifest.vocab_size, limit = model.manifest.max_positions;
    for (const int32_t token : prompt.tokens) {
        if (token < 0 || token >= vocab) {
            throw Error(LR_ERROR_PROMPT, "the prompt has token " + std::to_string(token) + ", the model knows 0 to " + std::to_string(vocab - 1));
        }
    }
    const auto given = static_cast<int64_t>(prompt.tokens.size()), wanted = static_cast<int64_t>(options.max_new_tokens);
    if (given + wanted > limit) {
        const std::string hint = limit > given ? "ask for at most " + std::to_string(limit - given) + " new tokens" : "shorten the prompt";
        throw Error(LR_ERROR_PROMPT, std::to_string(given) + " tokens of prompt and " + std::to_string(wanted) + " new ones are " +
                                         std::to_string(given + wanted) + ", the model has " + std::to_string(limit) + " positions", hint);
    }
}

Logits Generator::read(const Prompt& prompt, size_t new_tokens) {
    const Session& session = *model.session;
    const size_t needed = prompt.tokens.size() + new_tokens;
    size_t shared = 0;
    if (prompt.is_chat && cache_) {
        const size_t most = std::min(cached_.size(), prompt.tokens.size() - 1);
        while (shared < most && cached_[shared] == prompt.tokens[shared]) ++shared;
    }
    if (shared == 0) {
        cache_.reset();  // first, so that its memory can be had again
        cache_ = session.new_cache(needed);
    } else {
        session.truncate(*cache_, shared);
        // Twice as much each time, so that a chat's cache is copied a few times only.
        const auto roomy = std::min<size_t>(2 * cache_->capacity, static_cast<size_t>(model.manifest.max_positions));
        if (needed > cache_->capacity) session.enlarge(*cache_, std::max(needed, roomy));
    }
    cached_.clear();  // until the run has succeeded
    const Ids rest(prompt.tokens.begin() + static_cast<std::ptrdiff_t>(shared), prompt.tokens.end());
    Logits logits = session.prefill(rest, *cache_);
    cached_ = prompt.tokens;
    return logits;
}

Generation Generator::generate(const Prompt& prompt, const SamplingOptions& options, const OnPiece& on_piece) {
    check_prompt(prompt, options);
    Row row(model, prompt, options);
    const auto start = Clock::now();
    auto first = start;
    Logits logits = read(prompt, static_cast<size_t>(options.max_new_tokens));
    while (true) {
        const Piece piece = row.take(logits);
        if (row.result.tokens.size() == 1) first = Clock::now();
        if (on_piece && !on_piece(piece) && piece.finish == LR_FINISH_NONE) row.result.finish = LR_FINISH_CANCELLED;
        if (row.result.finish != LR_FINISH_NONE) break;
        Ids cached;
        cached.swap(cached_);  // of a run that fails nothing is known
        logits = model.session->decode(piece.token, *cache_);
        cached.push_back(piece.token);
        cached_.swap(cached);
    }
    row.result.prefill_ms = ms(start, first);
    row.result.decode_ms = ms(first, Clock::now());
    return std::move(row.result);
}

}  // namespace llama
