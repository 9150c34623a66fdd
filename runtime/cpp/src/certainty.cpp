#include "certainty.h"

#include <algorithm>
#include <cmath>

#include "random_numbers.h"

namespace llama {
namespace {

// Best first: the weight of each that may be drawn, and their running sums.
struct Weights {
    explicit Weights(std::vector<double> running) : sums(std::move(running)) {
        double before = 0;
        for (const double sum : sums) each.push_back(sum - before), before = sum;
    }
    std::vector<double> sums, each;
};

// How many top_k, top_p and min_p keep where `favour` multiplies a candidate's weight.
size_t kept(const Weights& weights, const SamplingOptions& options, double favour) {
    size_t kept = weights.each.size();
    if (options.top_k > 0) kept = std::min(kept, static_cast<size_t>(options.top_k));
    if (options.top_p < 1) {
        const double whole = weights.sums[kept - 1];
        size_t within = 0;
        for (size_t i = 0; i < kept; ++i) {
            const double before = weights.sums[i] - weights.each[i];
            if (before < options.top_p * (before + (whole - before) * favour)) ++within;
        }
        kept = within;
    }
    if (options.min_p > 0) {
        const auto enough = [&](double weight) { return weight * favour >= options.min_p; };
        kept = std::min(kept, static_cast<size_t>(std::count_if(weights.each.begin(), weights.each.end(), enough)));
    }
    return kept;
}

}  // namespace

bool is_certain(const Logits& logits, const SamplingOptions& options, uint64_t seed, uint64_t index, double tolerance) {
    double best = -HUGE_VAL, second = -HUGE_VAL;
    for (const float logit : logits) {
        if (logit > best) {
            second = best, best = logit;
        } else if (logit > second) {
            second = logit;
        }
    }
    const double temperature = options.temperature, apart = 2 * tolerance;  // two logits may come so much nearer
    // Greedy, or drawn where no other has any weight.
    if (best - second > apart + k_negligible * temperature) return true;
    // Greedy and near, or drawn from all that might be the best.
    if (apart >= k_negligible / 4 * temperature) return false;
    SamplingOptions all = options;
    all.top_k = 0, all.top_p = 1, all.min_p = 0;
    const Weights weights(candidates(logits, all).second);
    const double moves = std::exp(apart / temperature);  // the ratio of any two weights, by this factor at most
    const size_t surely = kept(weights, options, 1 / moves), perhaps = kept(weights, options, moves);
    const double number = uniform(seed, index), drawn = number * weights.sums[kept(weights, options, 1) - 1];
    const auto place = static_cast<size_t>(std::upper_bound(weights.sums.begin(), weights.sums.end(), drawn) - weights.sums.begin());
    if (place >= surely) return false;
    const size_t last = std::min(place + 2, weights.each.size());
    for (size_t i = place > 0 ? place - 1 : 0; i + 1 < last; ++i) {
        if (weights.each[i] <= weights.each[i + 1] * moves) return false;  // two that may change places
    }
    const double through = weights.sums[place], before = through - weights.each[place];
    const double latest_begin = before * moves / (before * moves + weights.sums[surely - 1] - before);
    const double earliest_end = through / (through + (weights.sums[perhaps - 1] - through) * moves);
    return latest_begin <= number && number < earliest_end;
}

}  // namespace llama
