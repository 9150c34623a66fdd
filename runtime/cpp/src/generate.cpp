#include "generate.h"

#include <chrono>

#include "errors.h"
#include "lookup.h"
#include "row.h"

namespace llama {
namespace {

using Clock = std::chrono::steady_clock;

double ms(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double, std::milli>(to - from).count();
}

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
    if (options.prompt_lookup_num_tokens) check_lookup(model.manifest, *model.session);
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

double Generator::logits_move() {
    if (!moves_) moves_ = llama::logits_move(*model.session, model.manifest);
    return *moves_;
}

Generation Generator::generate(const Prompt& prompt, const SamplingOptions& options, const OnPiece& on_piece) {
    check_prompt(prompt, options);
    const double moves = options.prompt_lookup_num_tokens ? logits_move() : 0;
    Row row(prompt, options, model.tokenizer ? &*model.tokenizer : nullptr, model.manifest.eos);
    const auto start = Clock::now();
    auto first = start;
    const OnPiece tell = [&](const Piece& piece) {
        if (row.result.tokens.size() == 1) first = Clock::now();
        if (on_piece && !on_piece(piece) && piece.finish == LR_FINISH_NONE) row.result.finish = LR_FINISH_CANCELLED;
        return row.result.finish == LR_FINISH_NONE;
    };
    if (!prompt.is_chat) cache_.clear();
    Logits logits = cache_.prefill(prompt.tokens, static_cast<size_t>(options.max_new_tokens));
    if (options.prompt_lookup_num_tokens) {
        read_ahead(row, cache_, logits, moves, tell);
    } else {
        while (tell(row.take(logits))) logits = cache_.decode(row.result.tokens.back());
    }
    row.result.prefill_ms = ms(start, first);
    row.result.decode_ms = ms(first, Clock::now());
    return std::move(row.result);
}

}  // namespace llama
