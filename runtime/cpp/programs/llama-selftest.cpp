// Replays a bundle's known answers on this device: does it compute here what the reference computed?

#include <cstdio>

#include "arguments.h"

namespace {
const std::string k_usage = std::string("llama-selftest BUNDLE ") + programs::k_model_usage;
}

int main(int count, char** words) {
    return programs::run_program(k_usage, [&] {
        programs::Arguments arguments;
        programs::ModelArguments opening;
        opening.declare(arguments);
        const std::vector<std::string> alone = arguments.parse(count, words);
        if (alone.size() != 1) throw programs::UsageError{"one BUNDLE is needed"};
        const llama_runtime::Model model = opening.open(alone[0]);
        llama_runtime::Generator generator(model);
        lr_selftest_report report;
        const std::vector<std::string> differences = generator.selftest(&report);
        for (const std::string& difference : differences) std::fprintf(stderr, "%s\n", difference.c_str());
        if (!differences.empty()) {
            std::fprintf(stderr, "error: %s: %zu differences from the known answers\n", alone[0].c_str(), differences.size());
            return 1;
        }
        std::printf("ok: %zu known answers, %zu tokens, numbers within %.2g\n", report.answers, report.tokens, report.largest_difference);
        return 0;
    });
}
