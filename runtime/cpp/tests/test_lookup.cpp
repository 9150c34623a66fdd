// Prompt lookup over a toy whose logits move with the number of tokens in a run: the tokens of plain decoding.

#include <algorithm>

#include "certainty.h"
#include "harness.h"
#include "lookup.h"
#include "prefix_cache.h"
#include "random_numbers.h"
#include "row.h"

using namespace llama;

namespace {

constexpr size_t k_vocab = 30, k_positions = 300;
const Ids k_prompt{7, 9, 3, 7, 9, 3, 7, 9};

Manifest toy_manifest() {
    Manifest manifest{};
    manifest.task = "text-generation", manifest.precision = "int4";
    manifest.vocab_size = k_vocab, manifest.max_positions = k_positions;
    manifest.cache.emplace();
    return manifest;
}

// Logits of a position are those of its last two tokens. Where several were asked for in one run, they are off,
// and so are later ones, as long as one of those tokens is in the cache.
class Toy : public Session {
public:
    Toy(const Manifest& manifest, float moves) : Session(manifest, 512), moves_(moves) {}

    std::unique_ptr<Cache> new_cache(size_t capacity) const override {
        check_capacity(capacity);
        auto cache = std::make_unique<ToyCache>();
        cache->capacity = capacity;
        return cache;
    }
    void truncate(Cache& cache, size_t length) const override {
        auto& toy = static_cast<ToyCache&>(cache);
        toy.tokens.resize(length), toy.together.resize(length), toy.length = length;
    }
    void enlarge(Cache& cache, size_t capacity) const override { cache.capacity = capacity; }
    Outputs run_text(const Ids&, const std::vector<std::string>&) const override { return {}; }

    mutable std::vector<size_t> runs;  // how many tokens each had

private:
    struct ToyCache : Cache {
        Ids tokens;
        std::vector<bool> together;
    };

    Logits run(const int32_t* tokens, size_t count, size_t kept, size_t, Cache& cache) const override {
        auto& toy = static_cast<ToyCache&>(cache);
        runs.push_back(count);
        Logits logits;
        for (size_t i = 0; i < count; ++i) {
            toy.tokens.push_back(tokens[i]), toy.together.push_back(kept > 1);
            if (i + kept < count) continue;
            const bool off = std::find(toy.together.begin(), toy.together.end(), true) != toy.together.end();
            const size_t at = toy.tokens.size(), before = at > 1 ? static_cast<size_t>(toy.tokens[at - 2]) : 0;
            const uint64_t seed = static_cast<uint64_t>(tokens[i]) * k_vocab + before;
            for (size_t v = 0; v < k_vocab; ++v) {
                const auto logit = static_cast<float>(4 * uniform(seed, v));
                logits.push_back(off ? logit + (splitmix64(at, v) & 1 ? moves_ : -moves_) : logit);
            }
        }
        toy.length = toy.tokens.size();
        return logits;
    }

    float moves_;
};

bool goes_on(const Piece& piece) { return piece.finish == LR_FINISH_NONE; }

struct Found {
    Ids tokens;
    size_t runs;
};

Found generate(const Toy& session, const Manifest& manifest, const SamplingOptions& options) {
    Row row({k_prompt, false, {}}, options, nullptr, {});
    const double moves = options.prompt_lookup_num_tokens ? logits_move(session, manifest) : 0;
    PrefixCache cache(session);
    session.runs.clear();
    Logits logits = cache.prefill(k_prompt, static_cast<size_t>(options.max_new_tokens));
    if (options.prompt_lookup_num_tokens) {
        read_ahead(row, cache, logits, moves, goes_on);
    } else {
        while (goes_on(row.take(logits))) logits = cache.decode(row.result.tokens.back());
    }
    return {row.result.tokens, session.runs.size()};
}

void drafts() {
    Drafts drafts({1, 2, 3, 4, 9, 2, 3, 5, 6, 2, 3});
    EQUAL(drafts.draft(2), (Ids{5, 6}));
    EQUAL(drafts.draft(6), (Ids{5, 6, 2, 3, 5, 6}));  // on into themselves
    drafts.push(4);
    EQUAL(drafts.draft(3), (Ids{9, 2, 3}));  // behind 2 3 4, the longest, though 3 5 came later
    drafts.push(7);
    EQUAL(drafts.draft(3), Ids{});
    EQUAL(Drafts({5}).draft(3), Ids{});
    EQUAL(Drafts({5, 5, 5}).draft(2), (Ids{5, 5}));
}

std::vector<SamplingOptions> all_options() {
    SamplingOptions greedy, drawn, cut, forbidden;
    drawn.temperature = 1, drawn.seed = 4;
    cut.temperature = 0.6, cut.seed = 5, cut.top_p = 0.8, cut.repetition_penalty = 0.8;
    forbidden.no_repeat_ngram_size = 5, forbidden.frequency_penalty = 0.1, forbidden.logprobs = 2;
    return {greedy, drawn, cut, forbidden};
}

void tokens_are_those_of_plain_decoding() {
    const Manifest manifest = toy_manifest();
    for (const float off : {0.0f, 1e-3f, 0.1f}) {
        const Toy session(manifest, off);
        EQUAL(logits_move(session, manifest), off == 0 ? 0.0 : 0.1);
        for (SamplingOptions options : all_options()) {
            options.max_new_tokens = 200;
            const Found plain = generate(session, manifest, options);
            EQUAL(plain.runs, 200u);
            for (const int32_t count : {1, 3, 10}) {
                options.prompt_lookup_num_tokens = count;
                const Found ahead = generate(session, manifest, options);
                EQUAL(ahead.tokens, plain.tokens);
                EQUAL(*std::max_element(session.runs.begin() + 1, session.runs.end()) <= static_cast<size_t>(count) + 1, true);
            }
        }
    }
}

void a_text_that_repeats_itself_takes_fewer_runs() {
    const Manifest manifest = toy_manifest();
    const Toy session(manifest, 0.1f);
    SamplingOptions options;
    options.max_new_tokens = 120, options.prompt_lookup_num_tokens = 6, options.bias = {{7, 1e3f}};
    const Found found = generate(session, manifest, options);
    EQUAL(found.tokens, Ids(120, 7));
    EQUAL(found.runs < 25, true);
    options.max_new_tokens = k_positions - static_cast<int32_t>(k_prompt.size());  // to the last position
    EQUAL(generate(session, manifest, options).tokens, Ids(k_positions - k_prompt.size(), 7));
}

void a_text_left_in_the_middle_leaves_the_cache_in_order() {
    const Manifest manifest = toy_manifest();
    const Toy session(manifest, 0);
    SamplingOptions options;
    options.max_new_tokens = 100, options.prompt_lookup_num_tokens = 8, options.bias = {{7, 1e3f}};
    Row row({k_prompt, false, {}}, options, nullptr, {});
    PrefixCache cache(session);
    const Logits logits = cache.prefill(k_prompt, 100);
    read_ahead(row, cache, logits, 0, [&](const Piece&) { return row.result.tokens.size() < 20; });
    const Ids held = cache.tokens();
    EQUAL(Ids(held.begin(), held.begin() + 8), k_prompt);
    EQUAL(Ids(held.begin() + 8, held.begin() + 27), Ids(19, 7));
    EQUAL(cache.prefill(held, 1), PrefixCache(session).prefill(held, 1));
}

void a_certain_choice_withstands_every_move() {
    size_t certain = 0;
    for (const double temperature : {0.0, 0.05, 0.7, 3.0}) {
        for (int cut = 0; cut < 4; ++cut) {
            SamplingOptions options;
            options.temperature = temperature, options.top_k = cut == 1 ? 6 : 0;
            options.top_p = cut == 2 ? 0.8 : 1, options.min_p = cut == 3 ? 0.2 : 0;
            for (uint64_t trial = 0; trial < 200; ++trial) {
                Logits logits;
                for (size_t v = 0; v < 40; ++v) logits.push_back(static_cast<float>((trial % 2 ? 14 : 2) * uniform(trial, v)));
                const double tolerance = trial % 3 == 0 ? 1e-4 : trial % 3 == 1 ? 1e-2 : 0.1;
                if (!is_certain(logits, options, 5, trial, tolerance)) continue;
                ++certain;
                for (uint64_t move = 0; move < 20; ++move) {
                    Logits moved = logits;
                    for (size_t v = 0; v < 40; ++v) moved[v] += static_cast<float>(splitmix64(trial * 20 + move, v) & 1 ? tolerance : -tolerance);
                    EQUAL(sample(moved, options, 5, trial), sample(logits, options, 5, trial));
                }
            }
        }
    }
    EQUAL(certain > 1000, true);
    const Logits near{2, 2 + 1e-3f, 0, -1, -2};
    SamplingOptions options;
    EQUAL(is_certain(near, options, 1, 0, 1e-3), false);
    options.temperature = 1;
    for (uint64_t index = 0; index < 50; ++index) {
        if (sample(near, options, 1, index) < 2) EQUAL(is_certain(near, options, 1, index, 1e-3), false);
    }
}

void what_cannot_read_ahead_is_refused() {
    struct Last : Toy {
        using Toy::Toy;
        bool gives_all_logits() const override { return false; }
    };
    Manifest manifest = toy_manifest();
    check_lookup(manifest, Toy(manifest, 0));
    REFUSES(LR_ERROR_OPTION, "an engine gives the logits of a run's last token alone", check_lookup(manifest, Last(manifest, 0)));
    manifest.rope_depends_on_length = true;
    REFUSES(LR_ERROR_OPTION, "rotary angles depend on the length", check_lookup(manifest, Toy(manifest, 0)));
}

}  // namespace

int main() {
    drafts(), tokens_are_those_of_plain_decoding(), a_text_that_repeats_itself_takes_fewer_runs();
    a_text_left_in_the_middle_leaves_the_cache_in_order(), a_certain_choice_withstands_every_move();
    what_cannot_read_ahead_is_refused();
    std::printf("%d failures\n", harness::failures);
    return harness::failures != 0;
}
