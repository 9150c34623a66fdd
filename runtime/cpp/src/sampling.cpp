#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "errors.h"
#include "random_numbers.h"

namespace llama {
namespace {

constexpr float k_never = -std::numeric_limits<float>::infinity();

Ids joined(const Ids& front, const Ids& behind) {
    Ids all = front;
    all.insert(all.end(), behind.begin(), behind.end());
    return all;
}

void forbid_ngrams(Logits& scores, const Ids& all, size_t size) {
    if (all.size() < size) return;
    const auto opening = all.end() - static_cast<std::ptrdiff_t>(size - 1);  // the last n - 1
    std::vector<int32_t> banned;
    for (size_t at = 0; at + size <= all.size(); ++at) {
        const auto from = all.begin() + static_cast<std::ptrdiff_t>(at);
        if (std::equal(opening, all.end(), from)) banned.push_back(all[at + size - 1]);
    }
    for (const int32_t token : banned) scores[static_cast<size_t>(token)] = k_never;
}

}  // namespace

void process(Logits& scores, const SamplingOptions& options, const Ids& prompt_tokens, const Ids& new_tokens,
             const Ids& eos_tokens) {
    const auto at = [&](int32_t token) -> float& { return scores[static_cast<size_t>(token)]; };
    for (const auto& [token, bias] : options.bias) at(token) += bias;
    if (options.repetition_penalty != 1) {
        const auto penalty = static_cast<float>(options.repetition_penalty);
        const Ids all = joined(prompt_tokens, new_tokens);
        for (const int32_t token : std::set<int32_t>(all.begin(), all.end())) {
            at(token) = at(token) < 0 ? at(token) * penalty : at(token) / penalty;
        }
    }
    if (options.presence_penalty != 0 || options.frequency_penalty != 0) {
        std::map<int32_t, int> counts;
        for (const int32_t token : new_tokens) ++counts[token];
        const auto presence = static_cast<float>(options.presence_penalty);
        const auto frequency = static_cast<float>(options.frequency_penalty);
        for (const auto& [token, count] : counts) {
            at(token) -= presence;
            const float product = frequency * static_cast<float>(count);
            at(token) -= product;
        }
    }
    if (options.no_repeat_ngram_size > 0) {
        forbid_ngrams(scores, joined(prompt_tokens, new_tokens), static_cast<size_t>(options.no_repeat_ngram_size));
    }
    if (new_tokens.size() < static_cast<size_t>(options.min_new_tokens)) {
        for (const int32_t token : eos_tokens) at(token) = k_never;
    }
}

int32_t greedy(const Logits& logits) {
    size_t best = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
        if (std::isnan(logits[i])) {
            best = i;
            break;
        }
        if (logits[i] > logits[best]) best = i;
    }
    if (!std::isfinite(logits[best])) {
        throw Error(LR_ERROR_SESSION, "the logit of token " + std::to_string(best) + " is " +
                                          std::to_string(logits[best]) + ", needs a finite number");
    }
    return static_cast<int32_t>(best);
}

std::pair<Ids, std::vector<double>> candidates(const Logits& logits, const SamplingOptions& options) {
    const double largest = logits[static_cast<size_t>(greedy(logits))];
    std::vector<double> scaled(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) scaled[i] = (static_cast<double>(logits[i]) - largest) / options.temperature;
    const auto value = [&](int32_t id) { return scaled[static_cast<size_t>(id)]; };
    Ids ids;
    for (size_t i = 0; i < scaled.size(); ++i) {
        if (scaled[i] >= -k_negligible) ids.push_back(static_cast<int32_t>(i));
    }
    const auto better = [&](int32_t a, int32_t b) { return value(a) != value(b) ? value(a) > value(b) : a < b; };
    if (options.top_k > 0 && static_cast<size_t>(options.top_k) < ids.size()) {
        const auto kept = ids.begin() + options.top_k;
        std::partial_sort(ids.begin(), kept, ids.end(), better);
        ids.erase(kept, ids.end());
    } else {
        std::sort(ids.begin(), ids.end(), better);
    }
    std::vector<double> weights, cumulative;
    for (const int32_t id : ids) {
        weights.push_back(std::exp(value(id)));
        cumulative.push_back(weights.back() + (cumulative.empty() ? 0.0 : cumulative.back()));
    }
    size_t kept = ids.size();
    if (options.top_p < 1) {
        const auto first = std::lower_bound(cumulative.begin(), cumulative.end(), options.top_p * cumulative.back());
        kept = std::min(kept, static_cast<size_t>(first - cumulative.begin()) + 1);
    }
    if (options.min_p > 0) {
        const auto enough = [&](double weight) { return weight >= options.min_p; };
        kept = static_cast<size_t>(std::count_if(weights.begin(), weights.begin() + static_cast<std::ptrdiff_t>(kept), enough));
    }
    ids.resize(kept), cumulative.resize(kept);
    return {ids, cumulative};
}

int32_t sample(const Logits& logits, const SamplingOptions& options, uint64_t seed, uint64_t index) {
    if (options.temperature == 0) return greedy(logits);
    const auto [ids, cumulative] = candidates(logits, options);
    const double number = uniform(seed, index) * cumulative.back();
    const auto found = std::upper_bound(cumulative.begin(), cumulative.end(), number);
    // A product that rounds up to the whole sum is beyond the last candidate.
    return ids[std::min(static_cast<size_t>(found - cumulative.begin()), ids.size() - 1)];
}

std::vector<std::pair<int32_t, double>> token_logprobs(const Logits& logits, int32_t token, size_t count) {
    const double largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
    const double shift = largest + std::log(sum);
    const auto logprob = [&](int32_t id) { return static_cast<double>(logits[static_cast<size_t>(id)]) - shift; };
    Ids ids(logits.size());
    std::iota(ids.begin(), ids.end(), 0);
    const auto better = [&](int32_t a, int32_t b) {
        const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
        return x != y ? x > y : a < b;
    };
    const auto end = ids.begin() + static_cast<std::ptrdiff_t>(std::min(count, ids.size()));
    std::partial_sort(ids.begin(), end, ids.end(), better);
    std::vector<std::pair<int32_t, double>> found{{token, logprob(token)}};
    for (auto at = ids.begin(); at != end; ++at) found.emplace_back(*at, logprob(*at));
    return found;
}

}  // namespace llama
