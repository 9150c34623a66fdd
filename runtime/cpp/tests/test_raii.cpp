// The C++ layer, and what happens to exceptions at the C ABI's border.

#include <llama_runtime.hpp>

#include <cstdio>
#include <thread>

namespace {

int failures = 0;

#define CHECK(condition)                                                        \
    do {                                                                        \
        if (!(condition)) {                                                     \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            ++failures;                                                         \
        }                                                                       \
    } while (0)

int throws(void*, const lr_piece*) { throw std::runtime_error("out of a callback"); }

template <typename Body>
lr_status status_of(Body body) {
    try {
        body();
        return LR_OK;
    } catch (const llama_runtime::Error& error) {
        CHECK(error.what()[0] != '\0');
        return error.status();
    }
}

}  // namespace

int main(int, char** words) {
    using namespace llama_runtime;
    CHECK(status_of([] { Model("/nowhere"); }) == LR_ERROR_MANIFEST);
    Model model(words[1]);
    CHECK(model.task() == "text-generation" && model.vocab_size() > 0 && model.max_positions() > 0);
    CHECK(model.has_tokenizer() && !model.has_chat());
    Generator generator(model);
    Options options;
    options.max_new_tokens = 12;
    const std::string prompt = "Once upon a time";
    const Generation whole = generator.generate(prompt, options);
    CHECK(whole.tokens.size() == 12 && whole.finish == LR_FINISH_LENGTH);
    CHECK(generator.decode(generator.encode(prompt)) == prompt);
    CHECK(generator.generate(generator.encode(prompt), options).tokens == whole.tokens);

    // What a callback throws comes out where the generation was asked for, and the generator goes on.
    std::string caught;
    try {
        generator.generate(prompt, options, [](std::string_view) -> bool { throw std::runtime_error("mine"); });
    } catch (const std::runtime_error& error) {
        caught = error.what();
    }
    CHECK(caught == "mine");
    CHECK(generator.generate(prompt, options).text == whole.text);

    // The C ABI lets nothing through, even where a callback of C++ throws into it.
    lr_result result;
    CHECK(lr_generate(generator.get(), prompt.data(), prompt.size(), &options, throws, nullptr, &result) == LR_ERROR_CALLBACK);
    CHECK(result.text == nullptr && lr_generator_error(generator.get())[0] != '\0');
    CHECK(generator.generate(prompt, options).text == whole.text);

    std::string shown;
    const Generation cancelled = generator.generate(prompt, options, [&](std::string_view text) {
        shown += text;
        return shown.size() < 10;
    });
    CHECK(cancelled.finish == LR_FINISH_CANCELLED && cancelled.text == shown && whole.text.rfind(shown, 0) == 0);

    Options more = options;
    more.stop_strings = {"boy"};
    more.logprobs = 2;
    const Generation stopped = generator.generate(prompt, more);
    CHECK(stopped.finish == LR_FINISH_STOP && stopped.text.find("boy") == std::string::npos);
    CHECK(stopped.logprobs.size() == stopped.tokens.size() && stopped.logprobs[0].size() == 3);
    CHECK(stopped.logprobs[0][0].token == stopped.tokens[0]);
    CHECK(status_of([&] { generator.generate("\xFF", options); }) == LR_ERROR_PROMPT);
    CHECK(status_of([&] { generator.chat({{"user", "hi"}}, options); }) == LR_ERROR_CHAT);
    CHECK(status_of([&] { generator.embed("hi"); }) == LR_ERROR_MANIFEST);
    CHECK(generator.selftest().empty());

    // Threads share the model, each with a generator; handles move.
    Generator moved = std::move(generator);
    std::vector<std::string> texts(4);
    std::vector<std::thread> threads;
    for (std::string& text : texts) {
        threads.emplace_back([&] { text = Generator(model).generate(prompt, options).text; });
    }
    for (std::thread& thread : threads) thread.join();
    for (const std::string& text : texts) CHECK(text == whole.text);
    CHECK(moved.generate(prompt, options).text == whole.text);
    std::printf("%d failures\n", failures);
    return failures != 0;
}
