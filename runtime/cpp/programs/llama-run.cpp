// Continues a prompt, or talks, with a bundle's model: the C++ `llama-export run`.

#include <unistd.h>

#include <csignal>
#include <iostream>
#include <iterator>

#include "arguments.h"

namespace {

using namespace llama_runtime;
using programs::Arguments;
using programs::UsageError;

const char* const k_usage = "llama-run BUNDLE [PROMPT] [options]; --help lists them";
const char* const k_help = R"(Usage: llama-run BUNDLE [PROMPT] [options]

Continue PROMPT, or the text on stdin, with BUNDLE's model. Greedy unless a temperature is given. One line
break at the end of stdin is not part of the prompt.

  --chat                        answer PROMPT as a chat's message; without PROMPT every line is a turn
  --system TEXT                 with --chat: the system message
  --stdin                       every line of stdin is a prompt of its own
  --ids                         PROMPT is token ids, "1 347 29871"
  --parse-special               PROMPT is a rendered chat template: names of special tokens are tokens
  -n, --max-new-tokens N        stop after so many tokens (128)
  --min-new-tokens N            do not end before so many (0)
  --temperature X               0 is greedy (0)
  --top-k N                     draw from the k likeliest only; 0: from all (0)
  --top-p X                     draw from the smallest set this likely (1)
  --min-p X                     draw from those at least this share as likely as the likeliest (0)
  --repetition-penalty X        above 1: less of what prompt and text have (1)
  --presence-penalty X          taken from every token that the text has (0)
  --frequency-penalty X         the same, for each time it has it (0)
  --no-repeat-ngram-size N      no so many tokens twice in the same order (0)
  --prompt-lookup-num-tokens N  read so many tokens ahead where the text repeats itself (0)
  --seed N                      makes a drawn text repeatable
  --logprobs N                  with --json: log-probabilities, and those of so many likeliest tokens
  --logit-bias TOKEN=BIAS       added to a token id's logit; -inf forbids it; may be given more than once
  --stop TEXT                   end before this string; may be given more than once
  --ignore-eos                  go on after the model's end
  --threads N                   default every physical core
  --onnxruntime FILE            ONNX Runtime's library; default LLAMA_RUNTIME_ONNXRUNTIME, then next to this
                                program, then the system's
  --device tensorrt             run one of the bundle's engines on a GPU (a build with TensorRT)
  --engine NAME                 which of them; default the only one
  --tensorrt FILE               TensorRT's library; default LLAMA_RUNTIME_TENSORRT, then the system's
  --json                        print one JSON object for each answer
)";

volatile std::sig_atomic_t g_interrupted = 0;

std::string finish_name(lr_finish finish) {
    const char* const names[] = {"", "eos", "stop", "length", "cancelled"};
    return names[finish];
}

void print_json(const Generation& done) {
    std::string line = "{\"text\": " + programs::quoted(done.text) + ", \"tokens\": " + programs::listed(done.tokens) +
                       ", \"prompt_tokens\": " + programs::listed(done.prompt_tokens) + ", \"finish_reason\": \"" +
                       finish_name(done.finish) + "\", \"seed\": " + std::to_string(done.seed) +
                       ", \"prefill_ms\": " + std::to_string(done.prefill_ms) +
                       ", \"decode_ms\": " + std::to_string(done.decode_ms);
    if (!done.logprobs.empty()) {
        line += ", \"logprobs\": [";
        for (size_t i = 0; i < done.logprobs.size(); ++i) {
            line += i ? ", [" : "[";
            for (size_t j = 0; j < done.logprobs[i].size(); ++j) {
                char entry[64];
                std::snprintf(entry, sizeof entry, "%s[%d, %.17g]", j ? ", " : "", done.logprobs[i][j].token, done.logprobs[i][j].logprob);
                line += entry;
            }
            line += "]";
        }
        line += "]";
    }
    std::cout << line << "}\n" << std::flush;
}

std::vector<int32_t> read_ids(const std::string& text) {
    std::vector<int32_t> ids;
    const char* at = text.c_str();
    for (char* end = nullptr; *at != '\0'; at = end) {
        const long id = std::strtol(at, &end, 10);
        if (end == at || id < INT32_MIN || id > INT32_MAX) throw UsageError{"PROMPT is '" + text + "', with --ids it needs token ids"};
        ids.push_back(static_cast<int32_t>(id));
        while (*end == ' ' || *end == ',' || *end == '\n') ++end;
    }
    return ids;
}

struct Program {
    programs::ModelArguments opening;
    std::string system;
    bool chat = false, lines = false, ids = false, parse_special = false, json = false, help = false, ignore_eos = false;
    Options options;
    std::vector<Message> messages;

    void declare(Arguments& arguments) {
        arguments.flag("--chat", chat), arguments.flag("--stdin", lines), arguments.flag("--ids", ids);
        arguments.flag("--parse-special", parse_special), arguments.flag("--json", json);
        arguments.flag("--help", help), arguments.flag("-h", help), arguments.flag("--ignore-eos", ignore_eos);
        arguments.option("--system", system), opening.declare(arguments);
        const double most = 2147483647, any = 1e300;
        for (const char* name : {"-n", "--max-new-tokens"}) arguments.number(name, options.max_new_tokens, 1, most);
        arguments.number("--min-new-tokens", options.min_new_tokens, 0, most);
        arguments.number("--temperature", options.temperature, 0, any);
        arguments.number("--top-k", options.top_k, 0, most);
        arguments.number("--top-p", options.top_p, 0, 1), arguments.number("--min-p", options.min_p, 0, 1);
        arguments.number("--repetition-penalty", options.repetition_penalty, 0, any);
        arguments.number("--presence-penalty", options.presence_penalty, -any, any);
        arguments.number("--frequency-penalty", options.frequency_penalty, -any, any);
        arguments.number("--no-repeat-ngram-size", options.no_repeat_ngram_size, 0, most);
        arguments.number("--prompt-lookup-num-tokens", options.prompt_lookup_num_tokens, 0, most);
        arguments.number("--logprobs", options.logprobs, 0, most);
        arguments.option("--stop", [this](const std::string& text) { options.stop_strings.push_back(text); });
        arguments.option("--seed", [this](const std::string& text) {
            char* end = nullptr;
            errno = 0;
            options.seed = std::strtoull(text.c_str(), &end, 10), options.has_seed = 1;
            if (text.empty() || text[0] == '-' || *end != '\0' || errno) throw UsageError{"--seed is '" + text + "', needs 0 to 2^64 - 1"};
        });
        arguments.option("--logit-bias", [this](const std::string& text) {
            char *equals = nullptr, *end = nullptr;
            const long token = std::strtol(text.c_str(), &equals, 10);
            const float bias = *equals == '=' ? std::strtof(equals + 1, &end) : 0;
            if (!end || end == equals + 1 || *end != '\0') throw UsageError{"--logit-bias is '" + text + "', needs TOKEN=BIAS"};
            options.bias.emplace_back(static_cast<int32_t>(token), bias);
        });
    }

    void answer(Generator& generator, const std::string& prompt) {
        bool shown = false;
        const OnText on_text = [&](std::string_view text) {
            if (!json) std::cout << text << std::flush, shown = true;
            return g_interrupted == 0;
        };
        if (chat) messages.push_back({"user", prompt});
        try {
            const Generation done = chat  ? generator.chat(messages, options, on_text)
                                    : ids ? generator.generate(read_ids(prompt), options, on_text)
                                          : generator.generate(prompt, options, on_text);
            if (json) print_json(done);
            if (!json) std::cout << '\n';
            if (chat) messages.push_back({"assistant", done.text});
        } catch (...) {
            if (chat) messages.pop_back();
            if (shown) std::cout << '\n';
            throw;
        }
    }

    int run(const std::vector<std::string>& alone) {
        if (alone.empty() || alone.size() > 2) throw UsageError{alone.empty() ? "BUNDLE is missing" : "there are more words than BUNDLE and PROMPT"};
        if (lines && alone.size() == 2) throw UsageError{"PROMPT and --stdin are given, needs one of them"};
        if (chat && (ids || parse_special)) throw UsageError{"--chat is given with --ids or --parse-special, needs one of them"};
        if (!system.empty() && !chat) throw UsageError{"--system is given without --chat"};
        options.ignore_eos = ignore_eos, options.parse_special = parse_special;
        const Model model = opening.open(alone[0]);
        Generator generator(model);
        if (!system.empty()) messages.push_back({"system", system});
        std::signal(SIGINT, [](int) { g_interrupted = 1; });
        if (alone.size() == 2) return answer(generator, alone[1]), 0;
        if (lines || chat) return answer_lines(generator);
        std::string text{std::istreambuf_iterator<char>(std::cin), {}};
        if (!text.empty() && text.back() == '\n') text.pop_back();
        return answer(generator, text), 0;
    }

    // A line that cannot be answered is told, and the next one is read.
    int answer_lines(Generator& generator) {
        const bool asks = !json && isatty(0) && isatty(2);
        int code = 0;
        std::string line;
        while (asks && std::cerr << "> ", !g_interrupted && std::getline(std::cin, line)) {
            code |= programs::run_program(k_usage, [&] { return answer(generator, line), 0; });
        }
        return code;
    }
};

}  // namespace

int main(int count, char** words) {
    return programs::run_program(k_usage, [&] {
        Program program;
        Arguments arguments;
        program.declare(arguments);
        const std::vector<std::string> alone = arguments.parse(count, words);
        if (program.help) return std::cout << k_help, 0;
        return program.run(alone);
    });
}
