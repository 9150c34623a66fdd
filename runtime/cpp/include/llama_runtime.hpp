// llama_runtime.h with owners, exceptions and std types; header-only, C++17.
//
//     llama_runtime::Model model("artifacts/tiny");
//     llama_runtime::Generator generator(model);
//     std::cout << generator.generate("Once upon a time").text;
#ifndef LLAMA_RUNTIME_HPP
#define LLAMA_RUNTIME_HPP

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "llama_runtime.h"

namespace llama_runtime {

// What went wrong, as one sentence; the hint, which may be empty, proposes the remedy.
class Error : public std::runtime_error {
public:
    Error(lr_status status, const std::string& message, std::string hint = {})
        : std::runtime_error(message), status_(status), hint_(std::move(hint)) {}
    lr_status status() const noexcept { return status_; }
    const std::string& hint() const noexcept { return hint_; }

private:
    lr_status status_;
    std::string hint_;
};

// lr_model_options, with the defaults; what its strings point to is the caller's.
struct ModelOptions : lr_model_options {
    ModelOptions() : lr_model_options() { lr_model_options_init(this); }
};

// An opened bundle; threads may share it. It must outlive its generators.
class Model {
public:
    explicit Model(const std::string& folder, const ModelOptions& options = {}) {
        lr_model* opened = nullptr;
        const lr_status status = lr_model_open(folder.c_str(), &options, &opened);
        model_.reset(opened);
        if (status != LR_OK) throw Error(status, lr_model_error(opened), lr_model_hint(opened));
    }
    const lr_model* get() const noexcept { return model_.get(); }
    std::string task() const { return lr_model_task(get()); }
    int32_t vocab_size() const { return lr_model_vocab_size(get()); }
    int32_t max_positions() const { return lr_model_max_positions(get()); }
    bool has_tokenizer() const { return lr_model_has_tokenizer(get()) != 0; }
    bool has_chat() const { return lr_model_has_chat(get()) != 0; }

private:
    struct Free {
        void operator()(lr_model* model) const { lr_model_free(model); }
    };
    std::unique_ptr<lr_model, Free> model_;
};

// lr_options, with the defaults; `stop` and `bias` are owned.
struct Options : lr_options {
    Options() : lr_options() { lr_options_init(this); }
    std::vector<std::string> stop_strings;
    std::vector<std::pair<int32_t, float>> bias;
};

struct Message {
    std::string role, content;
};

struct Logprob {
    int32_t token;
    double logprob;
};

struct Generation {
    std::string text;
    std::vector<int32_t> tokens, prompt_tokens;
    lr_finish finish;
    uint64_t seed;
    double prefill_ms, decode_ms;
    std::vector<std::vector<Logprob>> logprobs;  // for each token: the chosen one, then the likeliest
};

struct Label {
    std::string label;
    double score;
    float logit;
};

struct Span {
    std::string label;
    double score;
    size_t start, end;  // bytes of the text
};

// Called with the text that each token made safe to show; false ends the generation. It may throw.
using OnText = std::function<bool(std::string_view)>;

// One caller's place in a model; one thread at a time.
class Generator {
public:
    explicit Generator(const Model& model) {
        lr_generator* made = nullptr;
        const lr_status status = lr_generator_new(model.get(), &made);
        if (status != LR_OK) throw Error(status, "no generator could be made");
        generator_.reset(made);
    }
    lr_generator* get() const noexcept { return generator_.get(); }

    std::vector<int32_t> encode(std::string_view text, unsigned flags = LR_ADD_SPECIAL) {
        const int32_t* ids = nullptr;
        size_t count = 0;
        check(lr_encode(get(), text.data(), text.size(), flags, &ids, &count));
        return {ids, ids + count};
    }
    std::string decode(const std::vector<int32_t>& ids, bool skip_special = true) {
        const char* text = nullptr;
        size_t length = 0;
        check(lr_decode(get(), ids.data(), ids.size(), skip_special, &text, &length));
        return std::string(text, length);
    }
    Generation generate(std::string_view prompt, const Options& options = {}, const OnText& on_text = {}) {
        return run(options, on_text, [&](const lr_options* o, lr_on_piece on_piece, void* user, lr_result* result) {
            return lr_generate(get(), prompt.data(), prompt.size(), o, on_piece, user, result);
        });
    }
    Generation generate(const std::vector<int32_t>& ids, const Options& options = {}, const OnText& on_text = {}) {
        return run(options, on_text, [&](const lr_options* o, lr_on_piece on_piece, void* user, lr_result* result) {
            return lr_generate_ids(get(), ids.data(), ids.size(), o, on_piece, user, result);
        });
    }
    Generation chat(const std::vector<Message>& messages, const Options& options = {}, const OnText& on_text = {}) {
        std::vector<lr_message> given;
        for (const Message& message : messages) given.push_back({message.role.c_str(), message.content.c_str()});
        return run(options, on_text, [&](const lr_options* o, lr_on_piece on_piece, void* user, lr_result* result) {
            return lr_chat(get(), given.data(), given.size(), o, on_piece, user, result);
        });
    }
    std::vector<float> embed(std::string_view text, int pooling = LR_POOL_MEAN, bool normalize = false) {
        const float* vector = nullptr;
        size_t count = 0;
        check(lr_embed(get(), text.data(), text.size(), pooling, normalize, &vector, &count));
        return {vector, vector + count};
    }
    // Every label, in the model's order.
    std::vector<Label> classify(std::string_view text) {
        const lr_label* labels = nullptr;
        size_t count = 0, best = 0;
        check(lr_classify(get(), text.data(), text.size(), &labels, &count, &best));
        std::vector<Label> found;
        for (size_t i = 0; i < count; ++i) found.push_back({labels[i].label, labels[i].score, labels[i].logit});
        return found;
    }
    std::vector<Span> tag(std::string_view text) {
        const lr_span* spans = nullptr;
        size_t count = 0;
        check(lr_tag(get(), text.data(), text.size(), &spans, &count));
        std::vector<Span> found;
        for (size_t i = 0; i < count; ++i) found.push_back({spans[i].label, spans[i].score, spans[i].start, spans[i].end});
        return found;
    }
    Span answer(std::string_view question, std::string_view context) {
        lr_span span;
        check(lr_answer(get(), question.data(), question.size(), context.data(), context.size(), &span));
        return {"", span.score, span.start, span.end};
    }
    // Everything that is not as the reference had it; empty where the bundle is right.
    std::vector<std::string> selftest(lr_selftest_report* told = nullptr) {
        lr_selftest_report report;
        check(lr_selftest(get(), &report));
        if (told) *told = report;
        return {report.differences, report.differences + report.difference_count};
    }

private:
    struct Free {
        void operator()(lr_generator* generator) const { lr_generator_free(generator); }
    };
    struct Callback {
        const OnText& on_text;
        std::exception_ptr thrown;
    };

    void check(lr_status status) const {
        if (status != LR_OK) throw Error(status, lr_generator_error(get()), lr_generator_hint(get()));
    }

    // No exception may cross the C ABI, so what the callback throws is carried around it.
    static int forward(void* user, const lr_piece* piece) noexcept {
        auto& callback = *static_cast<Callback*>(user);
        try {
            return callback.on_text(std::string_view(piece->text, piece->length)) ? 0 : 1;
        } catch (...) {
            callback.thrown = std::current_exception();
            return 1;
        }
    }

    template <typename Call>
    Generation run(const Options& options, const OnText& on_text, Call call) {
        lr_options given = options;
        std::vector<const char*> stop;
        std::vector<int32_t> tokens;
        std::vector<float> values;
        for (const std::string& text : options.stop_strings) stop.push_back(text.c_str());
        for (const auto& [token, value] : options.bias) tokens.push_back(token), values.push_back(value);
        if (!stop.empty()) given.stop = stop.data(), given.stop_count = stop.size();
        if (!tokens.empty()) {
            given.bias_tokens = tokens.data(), given.bias_values = values.data(), given.bias_count = tokens.size();
        }
        Callback callback{on_text, nullptr};
        lr_result r;
        const lr_status status = call(&given, on_text ? &forward : nullptr, &callback, &r);
        if (callback.thrown) std::rethrow_exception(callback.thrown);
        check(status);
        Generation found{std::string(r.text, r.length), {r.tokens, r.tokens + r.token_count},
                         {r.prompt_tokens, r.prompt_tokens + r.prompt_token_count},
                         r.finish, r.seed, r.prefill_ms, r.decode_ms, {}};
        const size_t width = r.logprobs_top + 1;
        for (size_t i = 0; r.logprobs && i < r.token_count; ++i) {
            auto& row = found.logprobs.emplace_back();
            for (size_t j = 0; j < width; ++j) row.push_back({r.logprobs[i * width + j].token, r.logprobs[i * width + j].logprob});
        }
        return found;
    }

    std::unique_ptr<lr_generator, Free> generator_;
};

}  // namespace llama_runtime

#endif
