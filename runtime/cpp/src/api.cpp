// The C ABI: handles over the C++ runtime, from whose functions no exception comes out.

#include <cstring>
#include <new>
#include <stdexcept>

#include "chat.h"
#include "errors.h"
#include "generate.h"
#include "selftest.h"
#include "tasks.h"

using namespace llama;

namespace {

// Thrown in place of what a callback let out.
struct CallbackThrew {};

struct LastError {
    std::string message, hint;
};

// Runs `body`, and turns what it throws into a status and a sentence.
template <typename Body>
lr_status guarded(LastError& last, Body body) noexcept {
    try {
        last.message.clear(), last.hint.clear();
        const auto fail = [&](lr_status status, const std::string& message, const std::string& hint) {
            last.message = message, last.hint = hint;
            return status;
        };
        try {
            body();
            return LR_OK;
        } catch (const Error& error) {
            return fail(error.status, error.message, error.hint);
        } catch (const CallbackThrew&) {
            return fail(LR_ERROR_CALLBACK, "the callback let an exception out, it may not", "catch it in the callback, and return 1");
        } catch (const std::bad_alloc&) {
            return fail(LR_ERROR_MEMORY, "there is not enough memory", "");
        } catch (const std::length_error&) {
            return fail(LR_ERROR_MEMORY, "there is not enough memory", "");
        } catch (const std::exception& error) {
            return fail(LR_ERROR_INTERNAL, error.what(), "");
        } catch (...) {
            return fail(LR_ERROR_INTERNAL, "an unknown error", "");
        }
    } catch (...) {  // not even the sentence could be stored
        return LR_ERROR_MEMORY;
    }
}

void need(const void* pointer, const char* name) {
    if (!pointer) throw Error(LR_ERROR_ARGUMENT, std::string(name) + " is NULL");
}

std::string_view text_of(const char* text, size_t length, const char* name) {
    if (length > 0) need(text, name);
    return text ? std::string_view(text, length) : std::string_view();
}

}  // namespace

struct lr_model {
    std::unique_ptr<Model> model;  // none of a dead one
    LastError last;
};

// What the last call gave out stays here until the next one.
struct lr_generator {
    explicit lr_generator(const Model& model) : generator(model) {}

    Generator generator;
    LastError last;
    Ids ids;
    std::string text;
    Generation generation;
    std::vector<lr_logprob> logprobs;
    std::vector<float> vector;
    std::vector<Label> labels;
    std::vector<lr_label> label_views;
    std::vector<Span> spans;
    std::vector<lr_span> span_views;
    SelftestReport report;
    std::vector<const char*> differences;

    const Model& model() const { return generator.model; }
};

namespace {

template <typename Body>
lr_status call(lr_generator* generator, Body body) noexcept {
    if (!generator) return LR_ERROR_ARGUMENT;
    return guarded(generator->last, body);
}

lr_status run(lr_generator* g, const lr_options* options, lr_on_piece on_piece, void* user, lr_result* result,
              const std::function<Prompt(const SamplingOptions&)>& prompt_of) noexcept {
    if (result) *result = lr_result();
    return call(g, [&] {
        const SamplingOptions sampling = read_options(options, g->model().manifest.vocab_size);
        const Prompt prompt = prompt_of(sampling);
        OnPiece forward;
        if (on_piece) {
            forward = [&](const Piece& piece) {
                const lr_piece view{piece.token, piece.text.c_str(), piece.text.size(), piece.finish};
                try {
                    return on_piece(user, &view) == 0;
                } catch (...) {
                    throw CallbackThrew();
                }
            };
        }
        g->generation = g->generator.generate(prompt, sampling, forward);
        const Generation& found = g->generation;
        g->logprobs.clear();
        for (const auto& [token, logprob] : found.logprobs) g->logprobs.push_back({token, logprob});
        if (!result) return;
        *result = {found.text.c_str(), found.text.size(), found.tokens.data(), found.tokens.size(),
                   found.prompt_tokens.data(), found.prompt_tokens.size(), found.finish, found.seed,
                   found.prefill_ms, found.decode_ms, sampling.logprobs ? g->logprobs.data() : nullptr,
                   sampling.logprobs.value_or(0)};
    });
}

}  // namespace

extern "C" {

const char* lr_version(void) { return "0.1.0"; }

const char* lr_status_name(int status) {
    static const char* const names[] = {"ok", "argument", "library", "manifest", "tokenizer", "prompt",
                                        "chat", "option", "session", "memory", "callback", "internal"};
    const int count = sizeof names / sizeof *names;
    return status >= 0 && status < count ? names[status] : "unknown";
}

void lr_model_options_init(lr_model_options* options) {
    if (options) *options = lr_model_options(), options->size = sizeof(lr_model_options);
}

lr_status lr_model_open(const char* folder, const lr_model_options* options, lr_model** model) {
    if (!model) return LR_ERROR_ARGUMENT;
    *model = new (std::nothrow) lr_model();
    if (!*model) return LR_ERROR_MEMORY;
    return guarded((*model)->last, [&] {
        need(folder, "folder");
        (*model)->model = std::make_unique<Model>(folder, read_model_options(options));
    });
}

void lr_model_free(lr_model* model) { delete model; }
const char* lr_model_error(const lr_model* model) { return model ? model->last.message.c_str() : "the model is NULL"; }
const char* lr_model_hint(const lr_model* model) { return model ? model->last.hint.c_str() : ""; }

static const Model* alive(const lr_model* model) { return model ? model->model.get() : nullptr; }

const char* lr_model_task(const lr_model* model) { return alive(model) ? alive(model)->manifest.task.c_str() : nullptr; }
int32_t lr_model_vocab_size(const lr_model* model) {
    return alive(model) ? static_cast<int32_t>(alive(model)->manifest.vocab_size) : 0;
}
int32_t lr_model_max_positions(const lr_model* model) {
    return alive(model) ? static_cast<int32_t>(alive(model)->manifest.max_positions) : 0;
}
int lr_model_has_tokenizer(const lr_model* model) { return alive(model) && alive(model)->tokenizer; }
int lr_model_has_chat(const lr_model* model) { return alive(model) && alive(model)->tokenizer && alive(model)->manifest.chat; }

lr_status lr_generator_new(const lr_model* model, lr_generator** generator) {
    if (!generator) return LR_ERROR_ARGUMENT;
    *generator = nullptr;
    if (!alive(model)) return LR_ERROR_ARGUMENT;
    *generator = new (std::nothrow) lr_generator(*alive(model));
    return *generator ? LR_OK : LR_ERROR_MEMORY;
}

void lr_generator_free(lr_generator* generator) { delete generator; }
const char* lr_generator_error(const lr_generator* g) { return g ? g->last.message.c_str() : "the generator is NULL"; }
const char* lr_generator_hint(const lr_generator* g) { return g ? g->last.hint.c_str() : ""; }

lr_status lr_encode(lr_generator* g, const char* text, size_t length, unsigned flags, const int32_t** ids, size_t* count) {
    return call(g, [&] {
        need(ids, "ids"), need(count, "count");
        *ids = nullptr, *count = 0;
        const Tokenizer& tokenizer = g->model().need_tokenizer();
        g->ids = tokenizer.encode(text_of(text, length, "text"), flags & LR_ADD_SPECIAL, flags & LR_PARSE_SPECIAL);
        *ids = g->ids.data(), *count = g->ids.size();
    });
}

lr_status lr_decode(lr_generator* g, const int32_t* ids, size_t count, int skip_special, const char** text, size_t* length) {
    return call(g, [&] {
        need(text, "text"), need(length, "length");
        *text = nullptr, *length = 0;
        if (count > 0) need(ids, "ids");
        const Tokenizer& tokenizer = g->model().need_tokenizer();
        g->text = tokenizer.decode(count ? Ids(ids, ids + count) : Ids(), skip_special != 0);
        *text = g->text.c_str(), *length = g->text.size();
    });
}

void lr_options_init(lr_options* options) {
    if (!options) return;
    *options = lr_options();
    options->size = sizeof(lr_options);
    options->top_p = 1, options->repetition_penalty = 1;
    options->max_new_tokens = 128, options->logprobs = -1;
}

lr_status lr_generate(lr_generator* g, const char* prompt, size_t length, const lr_options* options,
                      lr_on_piece on_piece, void* user, lr_result* result) {
    return run(g, options, on_piece, user, result, [&](const SamplingOptions& sampling) {
        return g->generator.text_prompt(text_of(prompt, length, "prompt"), sampling);
    });
}

lr_status lr_generate_ids(lr_generator* g, const int32_t* ids, size_t count, const lr_options* options,
                          lr_on_piece on_piece, void* user, lr_result* result) {
    return run(g, options, on_piece, user, result, [&](const SamplingOptions& sampling) {
        if (count > 0) need(ids, "ids");
        return Prompt{count ? Ids(ids, ids + count) : Ids(), sampling.parse_special, {}};
    });
}

lr_status lr_chat(lr_generator* g, const lr_message* messages, size_t count, const lr_options* options,
                  lr_on_piece on_piece, void* user, lr_result* result) {
    return run(g, options, on_piece, user, result, [&](const SamplingOptions&) {
        if (count > 0) need(messages, "messages");
        std::vector<Message> given;
        for (size_t i = 0; i < count; ++i) {
            need(messages[i].role, "a message's role"), need(messages[i].content, "a message's content");
            given.emplace_back(messages[i].role, messages[i].content);
        }
        return chat_prompt(g->model(), given);
    });
}

lr_status lr_embed(lr_generator* g, const char* text, size_t length, int pooling, int normalize,
                   const float** vector, size_t* count) {
    return call(g, [&] {
        need(vector, "vector"), need(count, "count");
        *vector = nullptr, *count = 0;
        if (pooling < LR_POOL_MEAN || pooling > LR_POOL_FIRST) {
            throw Error(LR_ERROR_OPTION, "pooling is " + std::to_string(pooling) + ", needs 0 to 2");
        }
        g->vector = embed(g->model(), text_of(text, length, "text"), pooling, normalize != 0);
        *vector = g->vector.data(), *count = g->vector.size();
    });
}

lr_status lr_classify(lr_generator* g, const char* text, size_t length, const lr_label** labels, size_t* count, size_t* best) {
    return call(g, [&] {
        need(labels, "labels"), need(count, "count"), need(best, "best");
        *labels = nullptr, *count = *best = 0;
        g->labels = classify(g->model(), text_of(text, length, "text"));
        g->label_views.clear();
        for (const Label& label : g->labels) {
            g->label_views.push_back({label.name.c_str(), label.score, label.logit});
            if (label.score > g->labels[*best].score) *best = g->label_views.size() - 1;
        }
        *labels = g->label_views.data(), *count = g->label_views.size();
    });
}

lr_status lr_tag(lr_generator* g, const char* text, size_t length, const lr_span** spans, size_t* count) {
    return call(g, [&] {
        need(spans, "spans"), need(count, "count");
        *spans = nullptr, *count = 0;
        g->spans = tag(g->model(), text_of(text, length, "text"));
        g->span_views.clear();
        for (const Span& span : g->spans) g->span_views.push_back({span.label.c_str(), span.score, span.start, span.end});
        *spans = g->span_views.data(), *count = g->span_views.size();
    });
}

lr_status lr_answer(lr_generator* g, const char* question, size_t question_length, const char* context,
                    size_t context_length, lr_span* found) {
    return call(g, [&] {
        need(found, "answer");
        *found = lr_span();
        const Span span = answer(g->model(), text_of(question, question_length, "question"), text_of(context, context_length, "context"));
        *found = {nullptr, span.score, span.start, span.end};
    });
}

lr_status lr_selftest(lr_generator* g, lr_selftest_report* report) {
    return call(g, [&] {
        need(report, "report");
        *report = lr_selftest_report();
        g->report = selftest(g->model());
        g->differences.clear();
        for (const std::string& difference : g->report.differences) g->differences.push_back(difference.c_str());
        *report = {g->report.answers, g->report.tokens, g->report.near_ties_taken, g->report.largest_difference,
                   g->differences.data(), g->differences.size()};
    });
}

}  // extern "C"
