#include "lookup.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "errors.h"

namespace llama {
namespace {

// Equal runs of so many tokens are looked for, the longest first.
constexpr size_t k_ngrams[] = {4, 3, 2};
// In standard deviations of the logits. Seen on the demo: 4e-6 in float32, 0.02 where activations are rounded to 8
// bits. Our own operators move none: their rows are independent (runtime/FORMAT.md, "Own kernels").
constexpr double k_float32_moves = 1e-4, k_moves = 0.1;
constexpr int64_t k_asked = 8;  // tokens

double deviation(const Logits& logits) {
    const auto count = static_cast<double>(logits.size());
    const double mean = std::accumulate(logits.begin(), logits.end(), 0.0) / count;
    const auto square = [&](double sum, float logit) { return sum + (logit - mean) * (logit - mean); };
    return std::sqrt(std::accumulate(logits.begin(), logits.end(), 0.0, square) / count);
}

// Reads a row's tokens, several in one run, and answers for what a run of one would have given.
class Reader {
public:
    Reader(Row& row, PrefixCache& cache, double moves) : row_(row), cache_(cache), moves_(moves), plain_(cache.tokens().size()) {}

    // Reads tokens behind those that are there; the logits that follow each.
    std::vector<Logits> read(const Ids& tokens) {
        if (tokens.size() > 1) return cache_.extend(tokens);
        if (plain_ == cache_.tokens().size()) ++plain_;
        return {cache_.decode(tokens[0])};
    }

    // Chooses the next token, from what follows all that is in the cache but its last `unread` tokens; and whether
    // the cache still holds these.
    std::pair<Piece, bool> take(const Logits& logits, size_t unread) {
        const Ids& held = cache_.tokens();
        if (moves_ == 0 || plain_ == held.size() || row_.is_certain(logits, moves_ * deviation(logits))) {
            return {row_.take(logits), true};
        }
        const Ids again(held.begin() + static_cast<std::ptrdiff_t>(plain_), held.end() - static_cast<std::ptrdiff_t>(unread));
        cache_.keep(plain_);
        Logits alone;
        for (const int32_t token : again) alone = cache_.decode(token);
        plain_ = cache_.tokens().size();
        return {row_.take(alone), false};
    }

private:
    Row& row_;
    PrefixCache& cache_;
    double moves_;
    size_t plain_;  // the first positions of the cache, which are what plain decoding leaves there
};

}  // namespace

Drafts::Drafts(const Ids& tokens) {
    for (const int32_t token : tokens) push(token);
}

Ids Drafts::last(size_t count) const { return Ids(tokens_.end() - static_cast<std::ptrdiff_t>(count), tokens_.end()); }

void Drafts::push(int32_t token) {
    for (const size_t n : k_ngrams) {
        if (tokens_.size() >= n) follows_[last(n)] = tokens_.size();
    }
    tokens_.push_back(token);
}

Ids Drafts::draft(size_t count) const {
    for (const size_t n : k_ngrams) {
        if (tokens_.size() < n) continue;
        const auto found = follows_.find(last(n));
        if (found == follows_.end()) continue;
        Ids drafted;
        for (size_t i = 0, period = tokens_.size() - found->second; i < count; ++i) drafted.push_back(tokens_[found->second + i % period]);
        return drafted;
    }
    return {};
}

void check_lookup(const Manifest& manifest, const Session& session) {
    const std::string what = "prompt_lookup_num_tokens: ", hint = "leave it out";
    if (manifest.rope_depends_on_length) {
        throw Error(LR_ERROR_OPTION, what + "this model's rotary angles depend on the length of the text", hint);
    }
    if (!session.gives_all_logits()) throw Error(LR_ERROR_OPTION, what + "an engine gives the logits of a run's last token alone", hint);
}

double logits_move(const Session& session, const Manifest& manifest) {
    const auto count = static_cast<size_t>(std::min(k_asked, manifest.max_positions));
    Ids tokens;
    for (size_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(static_cast<int64_t>(i) % manifest.vocab_size));
    const auto alone = session.new_cache(count), together = session.new_cache(count);
    std::vector<Logits> each;
    for (const int32_t token : tokens) each.push_back(session.decode(token, *alone));
    if (each == session.extend(tokens, *together)) return 0;
    return manifest.precision == "float32" ? k_float32_moves : k_moves;
}

void read_ahead(Row& row, PrefixCache& cache, const Logits& logits, double moves, const OnPiece& tell) {
    Reader reader(row, cache, moves);
    Drafts drafts(row.result.prompt_tokens);
    Piece piece = row.take(logits);
    while (tell(piece)) {
        drafts.push(piece.token);
        const auto most = static_cast<size_t>(row.options.prompt_lookup_num_tokens);
        const size_t room = static_cast<size_t>(row.options.max_new_tokens) - row.result.tokens.size() - 1;
        Ids ahead = drafts.draft(std::min(most, room));
        ahead.insert(ahead.begin(), piece.token);
        const std::vector<Logits> following = reader.read(ahead);
        for (size_t count = 1; count <= ahead.size(); ++count) {
            const size_t unread = ahead.size() - count;
            bool there = false;
            std::tie(piece, there) = reader.take(following[count - 1], unread);  // behind the first `count` of them
            const bool goes_on = there && unread && piece.token == ahead[count];
            if (!goes_on || piece.finish != LR_FINISH_NONE) {
                if (there && unread) cache.keep(cache.tokens().size() - unread);
                break;
            }
            if (!tell(piece)) return;
            drafts.push(piece.token);
        }
    }
}

}  // namespace llama
