#include "options.h"

#include <cmath>
#include <sstream>

#include "errors.h"
#include "unicode.h"

namespace llama {
namespace {

void need(bool allowed, const char* name, double value, const char* needs) {
    if (allowed) return;
    std::ostringstream message;
    message << name << " is " << value << ", needs " << needs;
    throw Error(LR_ERROR_OPTION, message.str());
}

std::vector<std::string> read_stop(const lr_options& o) {
    if (o.stop_count && !o.stop) throw Error(LR_ERROR_ARGUMENT, "stop is NULL, stop_count says otherwise");
    std::vector<std::string> stop;
    for (size_t i = 0; i < o.stop_count; ++i) {
        if (!o.stop[i]) throw Error(LR_ERROR_ARGUMENT, "stop[" + std::to_string(i) + "] is NULL");
        stop.emplace_back(o.stop[i]);
        if (stop.back().empty() || invalid_utf8(stop.back()) != std::string::npos) {
            throw Error(LR_ERROR_OPTION, "stop[" + std::to_string(i) + "] is empty or not UTF-8, needs a text");
        }
    }
    return stop;
}

std::vector<std::pair<int32_t, float>> read_bias(const lr_options& o, int64_t vocab_size) {
    if (o.bias_count && (!o.bias_tokens || !o.bias_values)) {
        throw Error(LR_ERROR_ARGUMENT, "bias_tokens or bias_values is NULL, bias_count says otherwise");
    }
    std::vector<std::pair<int32_t, float>> bias;
    for (size_t i = 0; i < o.bias_count; ++i) {
        const int32_t token = o.bias_tokens[i];
        if (token < 0 || token >= vocab_size) {
            throw Error(LR_ERROR_OPTION, "bias has token " + std::to_string(token) + ", the model knows 0 to " +
                                             std::to_string(vocab_size - 1));
        }
        // Minus infinity forbids a token; NaN compares as false.
        need(o.bias_values[i] < HUGE_VALF, "bias", o.bias_values[i], "finite numbers, or minus infinity");
        bias.emplace_back(token, o.bias_values[i]);
    }
    return bias;
}

}  // namespace

SessionOptions read_model_options(const lr_model_options* given) {
    SessionOptions found;
    if (!given) return found;
    if (given->size != sizeof(lr_model_options)) {
        throw Error(LR_ERROR_ARGUMENT, "options were not initialised by lr_model_options_init");
    }
    need(given->threads >= 0 && given->threads <= 4096, "threads", given->threads, "0 to 4096");
    const auto text = [](const char* value) { return std::string(value ? value : ""); };
    const std::string device = text(given->device);
    if (!device.empty() && device != "cpu" && device != "tensorrt") {
        throw Error(LR_ERROR_OPTION, "device is " + device + ", needs cpu or tensorrt");
    }
    found.threads = given->threads, found.on_tensorrt = device == "tensorrt";
    found.onnxruntime = text(given->onnxruntime), found.tensorrt = text(given->tensorrt), found.engine = text(given->engine);
    if (!found.engine.empty() && !found.on_tensorrt) throw Error(LR_ERROR_OPTION, "an engine is named, but device is cpu", "device tensorrt runs engines");
    if (given->chunk_tokens) found.chunk_tokens = given->chunk_tokens;
    return found;
}

SamplingOptions read_options(const lr_options* given, int64_t vocab_size) {
    SamplingOptions found;
    if (!given) return found;
    if (given->size != sizeof(lr_options)) {
        throw Error(LR_ERROR_ARGUMENT, "options were not initialised by lr_options_init");
    }
    const lr_options& o = *given;
    const auto finite = [](double value) { return std::isfinite(value); };
    need(o.temperature >= 0 && finite(o.temperature), "temperature", o.temperature, "a number of at least 0");
    need(o.top_k >= 0, "top_k", o.top_k, "at least 0");
    need(o.top_p > 0 && o.top_p <= 1, "top_p", o.top_p, "more than 0 and at most 1");
    need(o.min_p >= 0 && o.min_p <= 1, "min_p", o.min_p, "0 to 1");
    need(o.repetition_penalty > 0 && finite(o.repetition_penalty), "repetition_penalty", o.repetition_penalty, "more than 0");
    need(finite(o.presence_penalty), "presence_penalty", o.presence_penalty, "a finite number");
    need(finite(o.frequency_penalty), "frequency_penalty", o.frequency_penalty, "a finite number");
    need(o.no_repeat_ngram_size >= 0, "no_repeat_ngram_size", o.no_repeat_ngram_size, "at least 0");
    need(o.max_new_tokens >= 1, "max_new_tokens", o.max_new_tokens, "at least 1");
    need(o.min_new_tokens >= 0 && o.min_new_tokens <= o.max_new_tokens, "min_new_tokens", o.min_new_tokens,
         "0 to max_new_tokens");
    need(o.prompt_lookup_num_tokens >= 0, "prompt_lookup_num_tokens", o.prompt_lookup_num_tokens, "at least 0");
    need(o.logprobs >= -1, "logprobs", o.logprobs, "at least -1");
    found.temperature = o.temperature, found.top_k = o.top_k, found.top_p = o.top_p, found.min_p = o.min_p;
    found.repetition_penalty = o.repetition_penalty;
    found.presence_penalty = o.presence_penalty, found.frequency_penalty = o.frequency_penalty;
    found.no_repeat_ngram_size = o.no_repeat_ngram_size;
    found.min_new_tokens = o.min_new_tokens, found.max_new_tokens = o.max_new_tokens;
    found.prompt_lookup_num_tokens = o.prompt_lookup_num_tokens;
    if (o.has_seed) found.seed = o.seed;
    if (o.logprobs >= 0) found.logprobs = std::min<size_t>(static_cast<size_t>(o.logprobs), static_cast<size_t>(vocab_size));
    found.ignore_eos = o.ignore_eos != 0, found.parse_special = o.parse_special != 0;
    found.stop = read_stop(o), found.bias = read_bias(o, vocab_size);
    return found;
}

}  // namespace llama
