// Measures a bundle: opening, prefill, decode, memory. Prints one JSON object.

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "arguments.h"

namespace {

const std::string k_usage = std::string("llama-bench BUNDLE [--prompt N] [--new N] [--repeat N] ") + programs::k_model_usage;

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

}  // namespace

int main(int count, char** words) {
    return programs::run_program(k_usage, [&] {
        programs::Arguments arguments;
        programs::ModelArguments opening;
        int prompt = 128, fresh = 64, repeat = 3;
        opening.declare(arguments), arguments.number("--prompt", prompt, 1, 1 << 24);
        arguments.number("--new", fresh, 2, 1 << 24), arguments.number("--repeat", repeat, 1, 1000);
        const std::vector<std::string> alone = arguments.parse(count, words);
        if (alone.size() != 1) throw programs::UsageError{"one BUNDLE is needed"};
        const auto start = Clock::now();
        const llama_runtime::Model model = opening.open(alone[0]);
        const double open_ms = ms_since(start);
        llama_runtime::Generator generator(model);
        llama_runtime::Options options;
        options.max_new_tokens = fresh, options.ignore_eos = 1;
        std::vector<int32_t> ids;
        for (int i = 0; i < prompt; ++i) ids.push_back(static_cast<int32_t>((i * 31 + 7) % model.vocab_size()));
        double first_token_ms = 0;
        std::vector<double> prefill, decode;
        for (int i = 0; i < repeat; ++i) {
            const auto done = generator.generate(ids, options, [&](std::string_view) {
                if (first_token_ms == 0) first_token_ms = ms_since(start);
                return true;
            });
            prefill.push_back(prompt / done.prefill_ms * 1000);
            decode.push_back((fresh - 1) / done.decode_ms * 1000);
        }
        rusage usage{};
        getrusage(RUSAGE_SELF, &usage);
        std::printf("{\"prompt_tokens\": %d, \"new_tokens\": %d, \"repeat\": %d, \"open_ms\": %.2f, "
                    "\"start_to_first_token_ms\": %.2f, \"prefill_tokens_per_s\": %.1f, "
                    "\"decode_tokens_per_s\": %.1f, \"peak_rss_mib\": %.1f}\n",
                    prompt, fresh, repeat, open_ms, first_token_ms, median(prefill), median(decode),
                    static_cast<double>(usage.ru_maxrss) / 1024);
        return 0;
    });
}
