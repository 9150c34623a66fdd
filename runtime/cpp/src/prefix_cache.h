// A cache that knows its tokens: whatever a prompt shares with them is not read again.
#pragma once

#include <memory>
#include <vector>

#include "session.h"

namespace llama {

// After a call that failed it knows nothing, and the next prompt is read from its start.
class PrefixCache {
public:
    explicit PrefixCache(const Session& session) : session_(session) {}

    // Reads a prompt, all of it but the longest prefix that is there; [V], the logits that follow it. There is
    // room for `new_tokens` behind it.
    Logits prefill(const Ids& prompt, size_t new_tokens);
    Logits decode(int32_t token);
    // Reads tokens in one run; the logits that follow each.
    std::vector<Logits> extend(const Ids& tokens);
    // Forgets all but the first tokens.
    void keep(size_t count);
    void clear();

    const Ids& tokens() const { return tokens_; }
    const Session& session() const { return session_; }

private:
    const Session& session_;
    std::unique_ptr<Cache> cache_;
    Ids tokens_;  // those that the cache holds
};

}  // namespace llama
