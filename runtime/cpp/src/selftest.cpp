#include "selftest.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "errors.h"

namespace llama {
namespace {

template <typename Expected, typename Got>
std::string difference(size_t answer, const std::string& place, const Expected& expected, const Got& got) {
    std::ostringstream text;
    text.precision(9);
    text << "answer " << answer << place << " is " << got << ", the reference has " << expected;
    return text.str();
}

std::string shown(const Ids& ids) {
    std::string text;
    for (const int32_t id : ids) text += (text.empty() ? "" : " ") + std::to_string(id);
    return text;
}

double largest(const std::vector<float>& values) {
    double found = 0;
    for (const float value : values) found = std::max(found, std::abs(double{value}));
    return found;
}

class Replay {
public:
    explicit Replay(const Model& model) : model_(model) {}

    void answer(size_t index, const KnownAnswer& known) {
        if (model_.tokenizer && known.prompt) {
            const Ids got = model_.tokenizer->encode(*known.prompt, true, false);
            if (got != known.prompt_tokens) report.differences.push_back(difference(index, ": prompt", shown(known.prompt_tokens), shown(got)));
        }
        // An engine may be shorter than the model, and round: what it holds is replayed, as exactly as it can be.
        const size_t most = static_cast<size_t>(model_.manifest.max_positions), given = known.prompt_tokens.size();
        const size_t steps = std::min(known.tokens.size(), most > given ? most - given : 0);
        if (steps == 0) return;
        const auto cache = model_.session->new_cache(given + steps);
        Logits logits = model_.session->prefill(known.prompt_tokens, *cache);
        for (size_t step = 0; step < steps; ++step) {
            const int32_t got = greedy(logits), expected = known.tokens[step];
            const double allowed = model_.session->rounding() * largest(logits);
            const double apart = double{logits[static_cast<size_t>(got)]} - logits[static_cast<size_t>(expected)];
            const bool tie = apart <= 2 * allowed || std::count(known.near_ties.begin(), known.near_ties.end(), static_cast<int64_t>(step)) > 0;
            if (got != expected && tie) {
                ++report.near_ties_taken;
            } else if (got != expected) {
                report.differences.push_back(difference(index, " at token " + std::to_string(step) + ": token", expected, got));
            }
            for (const Probe& probe : known.probes) {
                if (probe.position == static_cast<int64_t>(step)) compare(index, " at token " + std::to_string(step) + ": logit", probe, logits, std::max(known.tolerance, allowed));
            }
            // The reference's token, whatever ours was: one difference does not hide the next.
            if (step + 1 < steps) logits = model_.session->decode(expected, *cache);
        }
        report.tokens += steps;
    }

    void outputs(size_t index, const KnownAnswer& known) {
        if (known.prompt_tokens.size() > static_cast<size_t>(model_.manifest.max_positions)) return;
        for (const Probe& probe : known.probes) {
            const Outputs found = model_.session->run_text(known.prompt_tokens, {probe.output});
            const std::vector<float>& values = found.at(probe.output).values;
            compare(index, ": " + probe.output, probe, values, std::max(known.tolerance, model_.session->rounding() * largest(values)));
        }
        report.tokens += known.prompt_tokens.size();
    }

    SelftestReport report;

private:
    void compare(size_t index, const std::string& place, const Probe& probe, const std::vector<float>& values, double tolerance) {
        for (size_t k = 0; k < probe.indices.size(); ++k) {
            const auto at = static_cast<size_t>(probe.indices[k]);
            // An index beyond the output is a difference like a wrong number, not a crash.
            const double got = at < values.size() ? values[at] : std::nan("");
            const double apart = std::abs(got - probe.values[k]);
            report.largest_difference = std::isnan(apart) ? apart : std::max(report.largest_difference, apart);
            if (!(apart <= tolerance)) report.differences.push_back(difference(index, place + " of " + std::to_string(at), probe.values[k], got));
        }
    }

    const Model& model_;
};

}  // namespace

SelftestReport selftest(const Model& model) {
    if (model.manifest.known.empty()) {
        throw Error(LR_ERROR_MANIFEST, model.folder + ": the manifest has no known answers", "export again with verification");
    }
    Replay replay(model);
    for (size_t i = 0; i < model.manifest.known.size(); ++i) {
        const KnownAnswer& known = model.manifest.known[i];
        if (known.tokens.empty()) {
            replay.outputs(i, known);
        } else {
            replay.answer(i, known);
        }
    }
    if (replay.report.tokens == 0) {
        throw Error(LR_ERROR_MANIFEST, model.folder + ": every known answer is longer than the engine", "build it with a larger --max-seq");
    }
    replay.report.answers = model.manifest.known.size();
    return replay.report;
}

}  // namespace llama
