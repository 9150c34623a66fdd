#include "session.h"

#include <algorithm>

#include "engine_session.h"
#include "errors.h"
#include "graph_session.h"

namespace llama {

void Session::check_capacity(size_t capacity) const {
    if (!manifest_.cache) throw Error(LR_ERROR_MANIFEST, "the bundle's task is " + manifest_.task + ", which reads whole texts and has no cache");
    if (capacity < 1 || capacity > static_cast<size_t>(manifest_.max_positions)) {
        throw Error(LR_ERROR_PROMPT, "a cache of " + std::to_string(capacity) + " positions, the model has " + std::to_string(manifest_.max_positions));
    }
}

void Session::check_tokens(const Ids& tokens, const Cache& cache) const {
    if (tokens.empty()) throw Error(LR_ERROR_PROMPT, "no tokens, needs at least one");
    for (const int32_t token : tokens) {
        if (token < 0 || token >= manifest_.vocab_size) {
            throw Error(LR_ERROR_PROMPT, "token id " + std::to_string(token) + ", the vocabulary is 0 to " + std::to_string(manifest_.vocab_size - 1));
        }
    }
    // A write beyond the capacity would corrupt the cache, or be lost without a word.
    if (cache.length + tokens.size() > cache.capacity) {
        throw Error(LR_ERROR_PROMPT, std::to_string(tokens.size()) + " more tokens after " + std::to_string(cache.length) +
                                         ", the cache has room for " + std::to_string(cache.capacity));
    }
}

Logits Session::prefill(const Ids& tokens, Cache& cache) const {
    check_tokens(tokens, cache);
    // Every chunk is rotated for the whole text, so that the size of the chunks changes nothing.
    const size_t rope_length = cache.length + tokens.size();
    Logits logits;
    for (size_t at = 0, count = 0; at < tokens.size(); at += count) {
        count = std::min(chunk_tokens_, tokens.size() - at);
        logits = run(tokens.data() + at, count, 1, rope_length, cache);
    }
    return logits;
}

std::vector<Logits> Session::extend(const Ids& tokens, Cache& cache) const {
    check_tokens(tokens, cache);
    const size_t rope_length = cache.length + tokens.size();
    const auto V = static_cast<std::ptrdiff_t>(manifest_.vocab_size);
    std::vector<Logits> each;
    for (size_t at = 0, count = 0; at < tokens.size(); at += count) {
        count = std::min(chunk_tokens_, tokens.size() - at);
        const Logits all = run(tokens.data() + at, count, count, rope_length, cache);
        for (auto row = all.begin(); row != all.end(); row += V) each.emplace_back(row, row + V);
    }
    return each;
}

Logits Session::decode(int32_t token, Cache& cache) const {
    check_tokens({token}, cache);
    return run(&token, 1, 1, 0, cache);
}

std::unique_ptr<Session> open_session(const std::string& folder, Manifest& manifest, const SessionOptions& options) {
    if (manifest.soft_prompt || manifest.embed_tokens) {
        const char* what = manifest.soft_prompt ? "a learned prompt" : "a graph that takes embeddings";
        throw Error(LR_ERROR_MANIFEST, folder + ": has " + what + ", which the C++ runtime does not read", "use the Python runtime");
    }
    if (options.on_tensorrt) return open_engine_session(folder, manifest, options);
    return std::make_unique<GraphSession>(folder, manifest, options);
}

}  // namespace llama
