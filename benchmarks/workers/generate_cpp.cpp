// The C++ runtime on our bundle, as a program that links it; see protocol.py. The prompts, a line each of token
// ids, come from the file that BENCHMARK_PROMPTS names: the first one is continued, the others are read.

#include <llama_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

using Ids = std::vector<int32_t>;

static double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

static int note(void* user, const lr_piece* piece) {
    (void)piece;
    static_cast<std::vector<double>*>(user)->push_back(now());
    return 0;
}

static void must(lr_status status, const char* error) {
    if (status == LR_OK) return;
    std::fprintf(stderr, "error: %s\n", error);
    std::exit(1);
}

int main(int, char** words) {
    const double began = now(), started = std::atof(std::getenv("BENCHMARK_STARTED"));
    lr_model_options opening;
    lr_model_options_init(&opening);
    opening.threads = std::atoi(words[2]);
    lr_model* model = nullptr;
    lr_generator* generator = nullptr;
    must(lr_model_open(words[1], &opening, &model), lr_model_error(model));
    must(lr_generator_new(model, &generator), "no generator");
    const double loaded = now();

    std::vector<Ids> prompts;
    std::ifstream file(std::getenv("BENCHMARK_PROMPTS"));
    for (std::string line; std::getline(file, line);) {
        std::istringstream numbers(line);
        prompts.emplace_back();
        for (int32_t id; numbers >> id;) prompts.back().push_back(id);
    }
    const auto run = [&](const Ids& prompt, int32_t count, std::vector<double>& moments) {
        lr_options options;
        lr_options_init(&options);
        options.max_new_tokens = count, options.ignore_eos = 1;
        lr_result result;
        must(lr_generate_ids(generator, prompt.data(), prompt.size(), &options, note, &moments, &result), lr_generator_error(generator));
        return Ids(result.tokens, result.tokens + result.token_count);
    };
    std::vector<double> moments;
    const Ids tokens = run(prompts.at(0), std::atoi(words[4]), moments);
    double prefill = 0;
    for (size_t i = 1; i < prompts.size(); ++i) {
        std::vector<double> end;
        const double start = now();
        run(prompts[i], 1, end);
        prefill = std::max(prefill, static_cast<double>(prompts[i].size()) / (end.at(0) - start));
    }
    std::printf("{\"load_s\": %.6f, \"first_token_s\": %.6f, \"decode_tokens_per_s\": %.4f, \"prefill_tokens_per_s\": %.4f, \"tokens\": [",
                loaded - began, moments.at(0) - started, static_cast<double>(moments.size() - 1) / (moments.back() - moments.at(0)), prefill);
    for (size_t i = 0; i < tokens.size(); ++i) std::printf("%s%d", i ? ", " : "", tokens[i]);
    std::printf("]}\n");
    lr_generator_free(generator);
    lr_model_free(model);
    return 0;
}
