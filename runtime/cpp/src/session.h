// An opened bundle that maps token ids to logits, or whole texts to a head's outputs, and nothing else.
//
// Two kinds: the bundle's graph in ONNX Runtime (graph_session.h), or one of its engines (engine_session.h).
// T new tokens, P past tokens, V vocabulary. One row.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "manifest.h"
#include "options.h"
#include "sampling.h"

namespace llama {

// The keys and values of one conversation; used by one thread at a time, and freed before its session.
struct Cache {
    virtual ~Cache() = default;
    size_t capacity = 0, length = 0;  // positions: how many it may hold, and how many are valid
};

// What a whole text gives: the numbers of an output, and its dimensions.
struct Output {
    std::vector<float> values;
    std::vector<int64_t> dims;
};

using Outputs = std::map<std::string, Output>;

class Session {
public:
    virtual ~Session() = default;

    // Any number of threads may call these, each with a cache of its own.
    virtual std::unique_ptr<Cache> new_cache(size_t capacity) const = 0;
    // Reads tokens behind what the cache holds, a chunk at a time; [V], the logits that follow them.
    Logits prefill(const Ids& tokens, Cache& cache) const;
    Logits decode(int32_t token, Cache& cache) const;
    // Reads tokens as prefill does; the logits that follow each. Where it `gives_all_logits`.
    std::vector<Logits> extend(const Ids& tokens, Cache& cache) const;
    virtual bool gives_all_logits() const { return true; }
    size_t max_positions() const { return static_cast<size_t>(manifest_.max_positions); }
    // Forgets all but the first positions.
    virtual void truncate(Cache& cache, size_t length) const = 0;
    // Makes room for more positions, keeping those that there are.
    virtual void enlarge(Cache& cache, size_t capacity) const = 0;
    // By what share of the largest logit it may differ from the reference, where it computes in fewer bits.
    virtual double rounding() const { return 0; }
    // One text, alone, through a graph that reads it whole.
    virtual Outputs run_text(const Ids& tokens, const std::vector<std::string>& outputs) const = 0;

protected:
    Session(const Manifest& manifest, size_t chunk_tokens) : manifest_(manifest), chunk_tokens_(chunk_tokens) {}

    // One run behind what the cache holds, which it advances; [kept * V], the logits of the last positions. Angles
    // that depend on a text's length are those of a text of `rope_length`; 0: of what there is then.
    virtual Logits run(const int32_t* tokens, size_t count, size_t kept, size_t rope_length, Cache& cache) const = 0;
    // Throws LR_ERROR_PROMPT, and LR_ERROR_MANIFEST of a task without a cache.
    void check_capacity(size_t capacity) const;

    const Manifest& manifest_;

private:
    void check_tokens(const Ids& tokens, const Cache& cache) const;

    size_t chunk_tokens_;
};

// Loads the graph, or an engine, to whose limits the manifest's are then lowered. Throws LR_ERROR_SESSION,
// LR_ERROR_LIBRARY, and LR_ERROR_MANIFEST of a bundle that only other runtimes can run.
std::unique_ptr<Session> open_session(const std::string& folder, Manifest& manifest, const SessionOptions& options);

}  // namespace llama
