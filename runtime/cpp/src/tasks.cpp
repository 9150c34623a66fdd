#include "tasks.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "errors.h"

namespace llama {
namespace {

constexpr size_t k_answer_tokens = 15, k_stride_tokens = 128;

// A text as tokens that know which bytes of it they are.
struct Encoded {
    Ids tokens;  // all of them, BOS and EOS included
    std::vector<std::pair<size_t, size_t>> spans;
    size_t first, end;  // the tokens that are text
};

Ids encode(const Model& model, std::string_view text) {
    const Ids tokens = model.need_tokenizer().encode(text, true, false);
    const auto limit = static_cast<size_t>(model.manifest.max_positions);
    if (tokens.empty()) throw Error(LR_ERROR_PROMPT, "the text is empty, and the model has no token that opens one");
    if (tokens.size() > limit) {
        throw Error(LR_ERROR_PROMPT, "the text is " + std::to_string(tokens.size()) + " tokens long, the model has " + std::to_string(limit) + " positions", "shorten it");
    }
    return tokens;
}

// Spans are of whole characters: a token that is a part of one has all of it.
Encoded encode_with_spans(const Model& model, std::string_view text) {
    const Tokenizer& tokenizer = model.need_tokenizer();
    Encoded found;
    const Ids own = tokenizer.encode(text, false, false);
    std::string all;
    std::vector<size_t> ends;
    for (const int32_t id : own) {
        all += ends.empty() ? tokenizer.vocabulary().first_token_bytes(id) : tokenizer.vocabulary().token_bytes(id);
        ends.push_back(all.size());
    }
    if (all != text) {
        throw Error(LR_ERROR_TOKENIZER, "the tokens of the text do not add up to it, so its words cannot be found in it");
    }
    const auto inside = [&](size_t at) { return at < all.size() && (static_cast<unsigned char>(all[at]) & 0xC0) == 0x80; };
    if (tokenizer.bos()) found.tokens.push_back(*tokenizer.bos()), found.spans.emplace_back(0, 0);
    found.first = found.tokens.size();
    for (size_t i = 0; i < own.size(); ++i) {
        size_t begin = i ? ends[i - 1] : 0, end = ends[i];
        while (inside(begin)) --begin;
        while (end > begin && inside(end)) ++end;
        found.tokens.push_back(own[i]), found.spans.emplace_back(begin, end);
    }
    found.end = found.tokens.size();
    if (tokenizer.eos()) found.tokens.push_back(*tokenizer.eos()), found.spans.emplace_back(0, 0);
    return found;
}

void softmax(std::vector<double>& x) {
    const double largest = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (double& value : x) sum += value = std::exp(value - largest);
    for (double& value : x) value /= sum;
}

const Output& need(const Outputs& outputs, const char* name, size_t count) {
    const Output& found = outputs.at(name);
    if (found.values.size() != count || count == 0) {
        throw Error(LR_ERROR_SESSION, std::string(name) + " has " + std::to_string(found.values.size()) + " numbers, needs " + std::to_string(count));
    }
    return found;
}

std::vector<double> wide(const std::vector<float>& values, size_t from, size_t count) {
    const auto begin = values.begin() + static_cast<std::ptrdiff_t>(from);
    return {begin, begin + static_cast<std::ptrdiff_t>(count)};
}

const Classification& labels_of(const Model& model) {
    if (!model.manifest.classification) throw Error(LR_ERROR_MANIFEST, model.folder + ": classification is null, the task needs labels");
    return *model.manifest.classification;
}

}  // namespace

std::vector<float> embed(const Model& model, std::string_view text, int pooling, bool normalize) {
    model.need_task("feature-extraction");
    const Ids tokens = encode(model, text);
    const std::string name = model.manifest.hidden_state();
    if (name.empty()) throw Error(LR_ERROR_MANIFEST, model.folder + ": has no hidden states");
    const Outputs outputs = model.session->run_text(tokens, {name});
    const std::vector<float>& states = outputs.at(name).values;
    const size_t T = tokens.size(), width = states.size() / T;
    std::vector<float> vector(width);
    for (size_t i = 0; i < width; ++i) {
        double sum = 0;
        for (size_t t = 0; t < T; ++t) sum += states[t * width + i];
        const size_t row = pooling == LR_POOL_LAST ? T - 1 : 0;
        vector[i] = pooling == LR_POOL_MEAN ? static_cast<float>(sum / static_cast<double>(T)) : states[row * width + i];
    }
    if (normalize) {
        double sum = 0;
        for (const float x : vector) sum += static_cast<double>(x) * x;
        const auto length = std::max(static_cast<float>(std::sqrt(sum)), std::numeric_limits<float>::min());
        for (float& x : vector) x /= length;
    }
    return vector;
}

std::vector<Label> classify(const Model& model, std::string_view text) {
    model.need_task("text-classification");
    const Classification& labels = labels_of(model);
    const size_t count = labels.labels.size();
    const Outputs outputs = model.session->run_text(encode(model, text), {"logits"});
    const std::vector<float>& logits = need(outputs, "logits", count).values;
    std::vector<double> scores = wide(logits, 0, count);
    if (labels.problem_type == "multi_label_classification" || (count == 1 && labels.problem_type != "regression")) {
        for (double& x : scores) {
            const double small = std::exp(-std::abs(x));  // exp of a large number overflows
            x = (x >= 0 ? 1.0 : small) / (1.0 + small);
        }
    } else if (labels.problem_type != "regression") {
        softmax(scores);
    }
    std::vector<Label> found;
    for (size_t i = 0; i < count; ++i) found.push_back({labels.labels[i], scores[i], logits[i]});
    return found;
}

std::vector<Span> tag(const Model& model, std::string_view text) {
    model.need_task("token-classification");
    const Classification& labels = labels_of(model);
    const size_t count = labels.labels.size();
    const Encoded encoded = encode_with_spans(model, text);
    encode(model, text);  // refuses what is empty or too long
    const Outputs outputs = model.session->run_text(encoded.tokens, {"logits"});
    const std::vector<float>& logits = need(outputs, "logits", count * encoded.tokens.size()).values;
    std::vector<Span> words;
    size_t last_end = 0;
    const auto blank_at = [&](size_t at) { return is_blank(character_at(text, at).point); };
    const auto blank_before = [&](size_t at) {
        do --at;
        while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80);
        return blank_at(at);
    };
    for (size_t i = encoded.first; i < encoded.end; ++i) {
        const auto [start, end] = encoded.spans[i];
        if (trimmed(text, start, end).first >= end) continue;  // nothing but white space
        // A token with a space in front, or behind one, opens a word; its label is the word's.
        if (words.empty() || blank_at(start) || blank_before(last_end) || start > last_end) {
            std::vector<double> scores = wide(logits, i * count, count);
            softmax(scores);
            const auto best = std::max_element(scores.begin(), scores.end());
            words.push_back({labels.labels[static_cast<size_t>(best - scores.begin())], *best, start, end});
        }
        words.back().end = last_end = end;
    }
    for (Span& word : words) std::tie(word.start, word.end) = trimmed(text, word.start, word.end);
    return words;
}

Span answer(const Model& model, std::string_view question, std::string_view context) {
    model.need_task("question-answering");
    for (const auto& [text, what] : {std::pair(question, "question"), std::pair(context, "context")}) {
        if (invalid_utf8(text) != text.npos) continue;  // is refused when it is encoded
        if (trimmed(text, 0, text.size()).first >= text.size()) {
            throw Error(LR_ERROR_PROMPT, std::string("the ") + what + " is empty, needs a text");
        }
    }
    const Encoded asked = encode_with_spans(model, question), given = encode_with_spans(model, context);
    const auto limit = static_cast<size_t>(model.manifest.max_positions);
    const size_t around = asked.tokens.size() + given.tokens.size() - (given.end - given.first);
    if (around >= limit) {
        throw Error(LR_ERROR_PROMPT, "the question is " + std::to_string(asked.tokens.size()) + " tokens long, the model has " + std::to_string(limit) + " positions", "shorten the question");
    }
    const size_t room = limit - around, count = given.end - given.first;
    const size_t step = room > k_stride_tokens ? room - k_stride_tokens : 1;
    Span best{"", -1, 0, 0};
    // Windows, each `step` behind the one before, until the context is read.
    const size_t behind = count + step > room ? count + step - room : 0;
    for (size_t at = 0; at < std::max<size_t>(1, behind); at += step) {
        const size_t size = std::min(room, count - at);
        Ids row = asked.tokens;
        const auto from = given.tokens.begin();
        const auto part = [&](size_t begin, size_t end) {
            row.insert(row.end(), from + static_cast<std::ptrdiff_t>(begin), from + static_cast<std::ptrdiff_t>(end));
        };
        part(0, given.first);
        const size_t head = row.size();
        part(given.first + at, given.first + at + size);
        part(given.end, given.tokens.size());
        const Outputs outputs = model.session->run_text(row, {"start_logits", "end_logits"});
        std::vector<double> begins = wide(need(outputs, "start_logits", row.size()).values, head, size);
        std::vector<double> ends = wide(need(outputs, "end_logits", row.size()).values, head, size);
        softmax(begins), softmax(ends);
        for (size_t i = 0; i < size; ++i) {
            for (size_t j = i; j < std::min(size, i + k_answer_tokens); ++j) {
                if (begins[i] * ends[j] <= best.score) continue;
                const auto& spans = given.spans;
                const size_t first = given.first + at;
                const auto [start, end] = trimmed(context, spans[first + i].first, spans[first + j].second);
                best = {"", begins[i] * ends[j], start, std::max(start, end)};
            }
        }
    }
    return best;
}

}  // namespace llama
