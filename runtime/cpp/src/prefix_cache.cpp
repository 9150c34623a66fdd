#include "prefix_cache.h"

#include <algorithm>

namespace llama {

Logits PrefixCache::prefill(const Ids& prompt, size_t new_tokens) {
    const size_t needed = prompt.size() + new_tokens;
    // The last token is read in any case: only the graph knows the logits that follow it.
    const size_t most = std::min(tokens_.size(), prompt.size() - 1);
    size_t shared = 0;
    while (shared < most && tokens_[shared] == prompt[shared]) ++shared;
    if (shared == 0) {
        clear();  // first, so that its memory can be had again
        cache_ = session_.new_cache(needed);
    } else {
        keep(shared);
        // Twice as much each time, so that a chat's cache is copied a few times only.
        const size_t roomy = std::min(2 * cache_->capacity, session_.max_positions());
        if (needed > cache_->capacity) session_.enlarge(*cache_, std::max(needed, roomy));
    }
    tokens_.clear();  // until the run has succeeded
    const Ids rest(prompt.begin() + static_cast<std::ptrdiff_t>(shared), prompt.end());
    Logits logits = session_.prefill(rest, *cache_);
    tokens_ = prompt;
    return logits;
}

Logits PrefixCache::decode(int32_t token) {
    Ids known;
    known.swap(tokens_);
    Logits logits = session_.decode(token, *cache_);
    known.push_back(token);
    tokens_.swap(known);
    return logits;
}

std::vector<Logits> PrefixCache::extend(const Ids& tokens) {
    Ids known;
    known.swap(tokens_);
    std::vector<Logits> logits = session_.extend(tokens, *cache_);
    known.insert(known.end(), tokens.begin(), tokens.end());
    tokens_.swap(known);
    return logits;
}

void PrefixCache::keep(size_t count) {
    Ids known;
    known.swap(tokens_);
    session_.truncate(*cache_, count);
    known.resize(count);
    tokens_.swap(known);
}

void PrefixCache::clear() { cache_.reset(), tokens_.clear(); }

}  // namespace llama
