// Prompt lookup: what followed the same tokens earlier is read ahead, and kept where it is what comes.
//
// A text that quotes its prompt or repeats itself then takes several tokens from one run of the graph. The tokens
// are those of plain decoding: whatever a run of several tokens rounds differently from a run of one must not
// decide a token, so wherever it could, that token is read again alone.
#pragma once

#include <functional>
#include <map>

#include "manifest.h"
#include "prefix_cache.h"
#include "row.h"

namespace llama {

// The tokens so far, and where each short run of them came last.
class Drafts {
public:
    explicit Drafts(const Ids& tokens);
    // Adds a token; a run is remembered once a token has followed it.
    void push(int32_t token);
    // The `count` tokens that followed when the text last ended as it ends now; none if it never did. Where these
    // reach the end of the text, they go on into themselves, as a text of one period does.
    Ids draft(size_t count) const;

private:
    Ids last(size_t count) const;

    Ids tokens_;
    std::map<Ids, size_t> follows_;
};

// Throws LR_ERROR_OPTION of a model whose tokens must be read one by one.
void check_lookup(const Manifest& manifest, const Session& session);

// How far a logit moves with the number of tokens in a run, in standard deviations of the logits: 0 where a few
// tokens, read alone and together, give the same.
double logits_move(const Session& session, const Manifest& manifest);

// Generates a row whose prompt is in the cache, reading ahead, until `tell` returns false.
void read_ahead(Row& row, PrefixCache& cache, const Logits& logits, double moves, const OnPiece& tell);

}  // namespace llama
