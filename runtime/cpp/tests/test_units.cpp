// Each noun by itself; the numbers of sampling and random draws are FORMAT.md's tables.

#include <cmath>
#include <cstring>
#include <limits>

#include "harness.h"
#include "manifest.h"
#include "options.h"
#include "random_numbers.h"
#include "sampling.h"
#include "stopping.h"
#include "tokenizer.h"

using namespace llama;

namespace {

const float k_never = -std::numeric_limits<float>::infinity();

void random_numbers() {
    EQUAL(splitmix64(0, 0), 16294208416658607535u);
    EQUAL(splitmix64(0, 1), 7960286522194355700u);
    EQUAL(splitmix64(1234567, 2), 9817491932198370423u);
    EQUAL(splitmix64(18446744073709551615u, 0), 16490336266968443936u);
    EQUAL(uniform(0, 0), 0.8833108082136426);
    EQUAL(uniform(18446744073709551615u, 2), 0.21948196289526756);
}

void sampling() {
    const Logits logits{1.0f, 2.5f, -1.0f, 2.5f, 0.5f, 2.0f};
    struct Case {
        double temperature, top_p, min_p;
        int32_t top_k;
        Ids candidates, tokens;
    };
    const Case cases[] = {
        {1.0, 1.0, 0.0, 0, {1, 3, 5, 0, 4, 2}, {5, 1, 1, 3, 1, 5, 1, 5, 3, 3, 1, 3}},
        {0.5, 1.0, 0.0, 3, {1, 3, 5}, {3, 1, 1, 1, 1, 5, 1, 3, 1, 3, 1, 3}},
        {2.0, 0.8, 0.0, 0, {1, 3, 5, 0}, {5, 1, 1, 3, 1, 0, 1, 5, 3, 5, 1, 3}},
        {1.0, 1.0, 0.2, 0, {1, 3, 5, 0}, {5, 1, 1, 1, 1, 5, 1, 5, 1, 3, 1, 3}},
    };
    for (const Case& c : cases) {
        SamplingOptions options;
        options.temperature = c.temperature, options.top_p = c.top_p, options.min_p = c.min_p, options.top_k = c.top_k;
        EQUAL(candidates(logits, options).first, c.candidates);
        Ids drawn;
        for (uint64_t n = 0; n < 12; ++n) drawn.push_back(sample(logits, options, 42, n));
        EQUAL(drawn, c.tokens);
    }
    EQUAL(greedy(logits), 1);
    REFUSES(LR_ERROR_SESSION, "the logit of token 1 is nan", greedy({1, std::nanf(""), 2}));
    REFUSES(LR_ERROR_SESSION, "needs a finite number", greedy({1, HUGE_VALF}));
    const auto told = token_logprobs({0, 0, 1}, 0, 2);
    EQUAL(told.size(), 3u);
    EQUAL(told[1].first, 2);
    EQUAL(told[2].first, 0);
    EQUAL(std::abs(told[0].second - (0 - std::log(2 + std::exp(1.0)))) < 1e-12, true);
}

void processors() {
    const Logits x{1.0f, 2.5f, -1.0f, 2.5f, 0.5f, 2.0f};
    const auto processed = [&](const SamplingOptions& options, Ids all, const Ids& eos = {}) {
        Logits scores = x;
        process(scores, options, {all[0]}, Ids(all.begin() + 1, all.end()), eos);
        return scores;
    };
    SamplingOptions bias, repetition, presence, ngram, least;
    bias.bias = {{0, 1.5f}, {4, k_never}};
    EQUAL(processed(bias, {1, 3}), (Logits{2.5f, 2.5f, -1.0f, 2.5f, k_never, 2.0f}));
    repetition.repetition_penalty = 2;
    EQUAL(processed(repetition, {1, 2, 2, 3, 3}), (Logits{1.0f, 1.25f, -2.0f, 1.25f, 0.5f, 2.0f}));
    presence.presence_penalty = 0.5, presence.frequency_penalty = 0.25;
    EQUAL(processed(presence, {1, 2, 2, 5}), (Logits{1.0f, 2.5f, -2.0f, 2.5f, 0.5f, 1.25f}));
    ngram.no_repeat_ngram_size = 2;
    EQUAL(processed(ngram, {1, 2, 4, 1, 2, 1}), (Logits{1.0f, 2.5f, k_never, 2.5f, 0.5f, 2.0f}));
    least.min_new_tokens = 4;
    EQUAL(processed(least, {0, 2, 2, 4}, {1, 3}), (Logits{1.0f, k_never, -1.0f, k_never, 0.5f, 2.0f}));
}

void stopping() {
    const auto shown = [](std::vector<std::string> stop, const std::vector<std::string>& pushes) {
        StopMatcher matcher(std::move(stop));
        std::string text;
        for (const std::string& push : pushes) text += matcher.push(push) + "|";
        return text + matcher.flush() + (matcher.stopped() ? "!" : "");
    };
    EQUAL(shown({"end"}, {"the e", "nd of"}), "the ||!");
    EQUAL(shown({"end"}, {"the e", "gg"}), "the |egg|");
    EQUAL(shown({"end"}, {"the e"}), "the |e");
    EQUAL(shown({"b", "abc"}, {"abc"}), "a|!");    // complete first
    EQUAL(shown({"c", "bc"}, {"abcd"}), "a|!");    // of those that end together, the longest
    EQUAL(shown({}, {"abc"}), "abc|");
}

void unicode() {
    const auto pushed = [](Invalid invalid, const std::vector<std::string>& pushes) {
        Utf8Stream stream(invalid);
        std::string text;
        for (const std::string& push : pushes) text += stream.push(push);
        return text + stream.flush();
    };
    const std::string mark = "\xEF\xBF\xBD";
    EQUAL(pushed(Invalid::each_byte, {"a\xE2", "\x82", "\xAC" "b"}), "a\xE2\x82\xAC" "b");
    EQUAL(pushed(Invalid::each_byte, {"\xE2\x82", "A"}), mark + mark + "A");
    EQUAL(pushed(Invalid::each_subpart, {"\xE2\x82", "A"}), mark + "A");
    EQUAL(pushed(Invalid::each_subpart, {"\xED\xA0\x80"}), mark + mark + mark);
    EQUAL(pushed(Invalid::each_subpart, {"\xF0\x9F\xA6"}), mark);
    EQUAL(pushed(Invalid::each_byte, {"\xF0\x9F\xA6"}), mark + mark + mark);
    EQUAL(invalid_utf8("abc\xC0\xAF"), 3u);
    EQUAL(invalid_utf8("\xF4\x8F\xBF\xBF"), std::string::npos);
    EQUAL(invalid_utf8("\xF4\x90\x80\x80"), 0u);
}

void options() {
    lr_options o;
    lr_options_init(&o);
    EQUAL(read_options(&o, 10).max_new_tokens, 128);
    const auto wrong = [&](const char* part, auto change) {
        lr_options changed = o;
        change(changed);
        REFUSES(LR_ERROR_OPTION, part, read_options(&changed, 10));
    };
    wrong("temperature is -1, needs a number of at least 0", [](lr_options& x) { x.temperature = -1; });
    wrong("temperature is nan", [](lr_options& x) { x.temperature = std::nan(""); });
    wrong("top_p is 0, needs more than 0", [](lr_options& x) { x.top_p = 0; });
    wrong("min_p is 2, needs 0 to 1", [](lr_options& x) { x.min_p = 2; });
    wrong("top_k is -1", [](lr_options& x) { x.top_k = -1; });
    wrong("max_new_tokens is 0, needs at least 1", [](lr_options& x) { x.max_new_tokens = 0; });
    wrong("prompt_lookup_num_tokens is -1, needs at least 0", [](lr_options& x) { x.prompt_lookup_num_tokens = -1; });
    wrong("min_new_tokens is 200, needs 0 to max_new_tokens", [](lr_options& x) { x.min_new_tokens = 200; });
    wrong("repetition_penalty is 0", [](lr_options& x) { x.repetition_penalty = 0; });
    const char* empty[] = {""};
    wrong("stop[0] is empty", [&](lr_options& x) { x.stop = empty, x.stop_count = 1; });
    const int32_t token = 10;
    const float nan = std::nanf("");
    wrong("bias has token 10, the model knows 0 to 9", [&](lr_options& x) { x.bias_tokens = &token, x.bias_values = &nan, x.bias_count = 1; });
    o.size = 0;
    REFUSES(LR_ERROR_ARGUMENT, "options were not initialised", read_options(&o, 10));
}

// A vocabulary of bytes, one merge, and two added tokens, as FORMAT.md lays it out.
std::vector<uint8_t> flat_file() {
    std::vector<uint8_t> file;
    const auto number = [&](uint32_t n) {
        for (int i = 0; i < 4; ++i) file.push_back(static_cast<uint8_t>(n >> (8 * i)));
    };
    for (const char c : std::string("llamatok")) file.push_back(static_cast<uint8_t>(c));
    const std::string names = "<eos><e>";
    const uint32_t T = 259, text_bytes = 256 + 2 + 5 + 3 - 3;
    for (const uint32_t n : {1u, 1u, 0u, 0xFFFFFFFFu, T + 1, 256u, 1u, 2u, text_bytes + 3, static_cast<uint32_t>(names.size())}) number(n);
    uint32_t end = 0;
    for (uint32_t id = 0; id < T + 1; ++id) number(end += id < 256 ? 1 : id == 256 ? 2 : id == 257 ? 5 : id == 258 ? 3 : 0);
    for (uint32_t id = 0; id < 256; ++id) number(id);
    for (const uint32_t n : {97u, 98u, 0u, 256u}) number(n);
    for (const uint32_t n : {257u, 1u, 258u, 2u}) number(n);
    number(5), number(8);
    for (uint32_t id = 0; id < T + 1; ++id) file.push_back(id < T ? 1 : 0);
    for (uint32_t id = 0; id < 256; ++id) file.push_back(static_cast<uint8_t>(id));
    for (const char c : "ab" + names + names) file.push_back(static_cast<uint8_t>(c));
    return file;
}

void tokenizer() {
    const Tokenizer t(Vocabulary(flat_file(), "x"), 257, std::nullopt);
    EQUAL(t.encode("aba", true, false), (Ids{257, 256, 97}));
    EQUAL(t.encode("a<eos>b", false, true), (Ids{97, 257, 98}));
    EQUAL(t.encode("<eos>", false, false).size(), 5u);
    EQUAL(t.encode("a<e>b", false, false), (Ids{97, 258, 98}));  // not special: found in any text
    EQUAL(t.decode({257, 256, 258}, true), "ab<e>");
    EQUAL(t.decode({257, 256}, false), "<eos>ab");
    EQUAL(t.encode_parts({std::string("a"), std::string("b"), 257, std::string("ab")}), (Ids{97, 98, 257, 256}));
    REFUSES(LR_ERROR_PROMPT, "not valid UTF-8: byte 1", t.encode("a\xFF", false, false));

    const auto changed = [](size_t at, uint8_t byte) {
        std::vector<uint8_t> file = flat_file();
        file[at] = byte;
        return file;
    };
    REFUSES(LR_ERROR_TOKENIZER, "not a tokenizer.bin", Vocabulary(changed(0, 'L'), "x"));
    REFUSES(LR_ERROR_TOKENIZER, "version 2, this runtime reads 1", Vocabulary(changed(8, 2), "x"));
    REFUSES(LR_ERROR_TOKENIZER, "kind, flags or number", Vocabulary(changed(12, 2), "x"));
    REFUSES(LR_ERROR_TOKENIZER, "bytes, its header needs", Vocabulary(changed(24, 0xFF), "x"));
    REFUSES(LR_ERROR_TOKENIZER, "ends outside", Vocabulary(changed(48, 9), "x"));
    REFUSES(LR_ERROR_TOKENIZER, "not a tokenizer.bin", Vocabulary({}, "x"));
    std::vector<uint8_t> cut = flat_file();
    cut.pop_back();
    REFUSES(LR_ERROR_TOKENIZER, "bytes, its header needs", Vocabulary(cut, "x"));
}

void manifest() {
    const auto refused = [](const std::string& text, const std::string& part) {
        REFUSES(LR_ERROR_MANIFEST, part, parse_manifest(text, "m"));
    };
    refused("", "m: not JSON");
    refused("[]", "not a bundle of ours");
    refused(R"({"format": "llama-export"})", "version is missing");
    refused(R"({"format": "llama-export", "version": 2})", "version 2 is newer than this runtime, which reads 1");
    refused(R"({"format": "llama-export", "version": true})", "version is true, needs an integer");
    refused(R"({"format": "llama-export", "version": 1.0})", "version is 1.0, needs an integer");
    refused(R"({"format": "llama-export", "version": 1})", "created_with is missing");
    refused(R"({"a": 1, "a": 2})", "key \"a\" is given twice");
    refused(std::string(100000, '['), "nested too deeply");
    refused("{\"a\": \"\xFF\"}", "not JSON");
    refused(R"({"format": NaN})", "not JSON");
}

}  // namespace

int main() {
    random_numbers(), sampling(), processors(), stopping(), unicode(), options(), tokenizer(), manifest();
    std::printf("%d failures\n", harness::failures);
    return harness::failures != 0;
}
