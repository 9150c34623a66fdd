// Seeded mutations of a bundle's manifest.json, tokenizer.bin and engine sidecar, and of the ABI's arguments: refused or read,
// never a crash, a hang or memory without bound. Under the sanitizers it finds what a plain build hides.
//
//     test_fuzz BUNDLE ROUNDS [SEED]

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>

#include "engine_file.h"
#include "engine_sample.h"
#include "errors.h"
#include "files.h"
#include "manifest.h"
#include "options.h"
#include "tokenizer.h"

using namespace llama;

namespace {

using Random = std::mt19937_64;

size_t below(Random& random, size_t limit) { return limit ? random() % limit : 0; }

// Flips, overwrites, cuts, repeats and inserts; numbers at interesting sizes.
std::string mutated(Random& random, std::string text) {
    static const char* const words[] = {"-1", "0", "4294967295", "9223372036854775808", "1e999", "null", "{}", "[]",
                                        "\"\"", "\"..\"", "true", "\"/etc/passwd\"", "1.5", "\xFF", "{i}", "\\u0000"};
    for (size_t count = 1 + below(random, 4); count > 0 && !text.empty(); --count) {
        const size_t at = below(random, text.size()), size = 1 + below(random, 16);
        switch (below(random, 6)) {
            case 0: text[at] = static_cast<char>(text[at] ^ (1 << below(random, 8))); break;
            case 1: text.resize(at); break;
            case 2: text.erase(at, size); break;
            case 3: text.insert(at, text.substr(below(random, text.size()), size)); break;
            case 4: {
                const uint32_t numbers[] = {0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, static_cast<uint32_t>(random())};
                const uint32_t number = numbers[below(random, 6)];
                for (size_t i = 0; i < 4 && (at & ~size_t{3}) + i < text.size(); ++i) {
                    text[(at & ~size_t{3}) + i] = static_cast<char>(number >> (8 * i));
                }
                break;
            }
            default: {
                // A whole value of a JSON document, up to the next comma.
                const size_t colon = text.find(':', at);
                const size_t end = colon == text.npos ? text.npos : text.find_first_of(",}]\n", colon);
                if (end != text.npos) text.replace(colon + 1, end - colon - 1, words[below(random, sizeof words / sizeof *words)]);
            }
        }
    }
    return text;
}

std::string random_bytes(Random& random, size_t most) {
    std::string text(below(random, most), '\0');
    for (char& c : text) c = static_cast<char>(below(random, 3) ? 32 + below(random, 95) : random());
    return text;
}

template <typename Body>
bool accepted(Body body) {
    try {
        body();
        return true;
    } catch (const Error& error) {
        if (error.message.empty()) std::abort();
        return false;
    }
}

size_t fuzz_manifest(Random& random, const std::string& whole) {
    return accepted([&] { parse_manifest(mutated(random, whole), "manifest.json"); });
}

size_t fuzz_engine_file(Random& random) {
    return accepted([&] { parse_engine_file(mutated(random, k_engine_sample), "engine.json"); });
}

size_t fuzz_tokenizer(Random& random, const std::string& whole) {
    return accepted([&] {
        const std::string file = mutated(random, whole);
        const Tokenizer tokenizer(Vocabulary(std::vector<uint8_t>(file.begin(), file.end()), "tokenizer.bin"), 1, 2);
        std::string text = random_bytes(random, 200);
        const size_t at = invalid_utf8(text);
        if (at != text.npos) text.resize(at);
        const Ids ids = tokenizer.encode(text, true, below(random, 2));
        tokenizer.decode(ids, below(random, 2));
        tokenizer.decode({-1, static_cast<int32_t>(random()), std::numeric_limits<int32_t>::max()}, false);
    });
}

// Any bytes and numbers through the C ABI of an opened bundle.
size_t fuzz_abi(Random& random, lr_generator* generator, lr_generator* other) {
    const std::string text = random_bytes(random, 60);
    std::vector<int32_t> ids(below(random, 6));
    for (int32_t& id : ids) id = below(random, 4) ? static_cast<int32_t>(below(random, 1024)) : static_cast<int32_t>(random());
    const double numbers[] = {0, 1, 0.5, -1, 2, 1e-300, 1e300, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()};
    const auto number = [&] { return below(random, 3) ? 1.0 : numbers[below(random, 9)]; };
    lr_options options;
    lr_options_init(&options);
    if (below(random, 20) == 0) options.size = static_cast<size_t>(random());
    options.temperature = number(), options.top_p = number(), options.min_p = below(random, 3) ? 0 : number();
    options.repetition_penalty = number(), options.presence_penalty = number(), options.frequency_penalty = number();
    options.max_new_tokens = below(random, 8) ? static_cast<int32_t>(1 + below(random, 6)) : static_cast<int32_t>(random());
    options.top_k = below(random, 2) ? 0 : static_cast<int32_t>(random());
    options.no_repeat_ngram_size = below(random, 3) ? 0 : static_cast<int32_t>(random());
    options.min_new_tokens = below(random, 3) ? 0 : static_cast<int32_t>(below(random, 9));
    options.logprobs = below(random, 2) ? -1 : static_cast<int32_t>(below(random, 3) ? 3 : random());
    const std::string stop = random_bytes(random, 4);
    const char* stops[] = {stop.c_str(), nullptr};
    options.stop = below(random, 2) ? stops : nullptr, options.stop_count = below(random, 3);
    const float bias = static_cast<float>(number());
    options.bias_tokens = ids.data(), options.bias_values = &bias, options.bias_count = below(random, 4) == 0 && !ids.empty();
    lr_result result;
    const lr_message messages[] = {{"user", text.c_str()}, {below(random, 2) ? "assistant" : nullptr, stop.c_str()}};
    const int32_t* found = nullptr;
    const char* shown = nullptr;
    size_t count = 0;
    lr_status status = LR_OK;
    switch (below(random, 5)) {
        case 0: status = lr_generate(generator, text.data(), text.size(), &options, nullptr, nullptr, &result); break;
        case 1: status = lr_generate_ids(generator, ids.data(), ids.size(), &options, nullptr, nullptr, &result); break;
        case 2: status = lr_chat(generator, messages, below(random, 3), &options, nullptr, nullptr, &result); break;
        case 3: status = lr_encode(generator, text.data(), text.size(), static_cast<unsigned>(random()), &found, &count); break;
        default: status = lr_decode(generator, ids.data(), ids.size(), static_cast<int>(random()), &shown, &count);
    }
    if (status == LR_ERROR_INTERNAL || (status != LR_OK && lr_generator_error(generator)[0] == '\0')) {
        std::fprintf(stderr, "status %d: %s\n", status, lr_generator_error(generator));
        std::abort();
    }
    // Whatever it was given, it then does what one does that was given nothing of the kind.
    if (below(random, 16) == 0) {
        lr_options_init(&options);
        options.max_new_tokens = 4;
        lr_result fresh;
        if (lr_generate(generator, "Once", 4, &options, nullptr, nullptr, &result) != LR_OK ||
            lr_generate(other, "Once", 4, &options, nullptr, nullptr, &fresh) != LR_OK ||
            std::strcmp(result.text, fresh.text) != 0) {
            std::fprintf(stderr, "the generator is not what it was: %s\n", lr_generator_error(generator));
            std::abort();
        }
    }
    return status == LR_OK;
}

}  // namespace

int main(int count, char** words) {
    if (count < 3) return 2;
    const std::string bundle = words[1];
    const auto rounds = static_cast<size_t>(std::atoll(words[2]));
    Random random(count > 3 ? static_cast<uint64_t>(std::atoll(words[3])) : 20240418u);
    const auto whole = [&](const char* name) {
        const std::vector<uint8_t> content = read_file(bundle + "/" + name, size_t{1} << 30, LR_ERROR_INTERNAL);
        return std::string(content.begin(), content.end());
    };
    const std::string manifest = whole("manifest.json"), tokenizer = whole("tokenizer.bin");
    lr_model* model = nullptr;
    lr_generator *generator = nullptr, *other = nullptr;
    if (lr_model_open(bundle.c_str(), nullptr, &model) != LR_OK || lr_generator_new(model, &generator) != LR_OK ||
        lr_generator_new(model, &other) != LR_OK) {
        std::fprintf(stderr, "%s\n", lr_model_error(model));
        return 1;
    }
    size_t read[4] = {};
    for (size_t i = 0; i < rounds; ++i) {
        read[0] += fuzz_manifest(random, manifest);
        read[1] += fuzz_tokenizer(random, tokenizer);
        read[2] += fuzz_abi(random, generator, other);
        read[3] += fuzz_engine_file(random);
    }
    std::printf("%zu rounds; read: %zu manifests, %zu tokenizers, %zu calls, %zu engine files\n", rounds, read[0], read[1],
                read[2], read[3]);
    lr_generator_free(generator), lr_generator_free(other), lr_model_free(model);
    return 0;
}
