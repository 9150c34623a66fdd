// Command lines of our programs: flags, options with a value, and what stands alone.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "llama_runtime.hpp"

namespace programs {

// A wrong command line; the message is one sentence.
struct UsageError {
    std::string message;
};

class Arguments {
public:
    using Take = std::function<void(const std::string&)>;

    void flag(const std::string& name, bool& value) {
        flags_[name] = &value;
    }
    void option(const std::string& name, Take take) { options_[name] = std::move(take); }
    void option(const std::string& name, std::string& value) {
        option(name, [&value](const std::string& text) { value = text; });
    }
    template <typename Number>
    void number(const std::string& name, Number& value, double least, double most) {
        option(name, [=, &value](const std::string& text) {
            char* end = nullptr;
            const double found = std::strtod(text.c_str(), &end);
            if (text.empty() || *end != '\0' || !(found >= least && found <= most)) {
                throw UsageError{name + " is '" + text + "', needs a number from " + shown(least) + " to " + shown(most)};
            }
            value = static_cast<Number>(found);
            if (static_cast<double>(value) != found) throw UsageError{name + " is '" + text + "', needs a whole number"};
        });
    }

    // What stands alone, in order.
    std::vector<std::string> parse(int count, char** words) const {
        std::vector<std::string> alone;
        bool only_words = false;
        for (int i = 1; i < count; ++i) {
            std::string word = words[i], value;
            if (only_words || word.size() < 2 || word[0] != '-') {
                alone.push_back(word);
                continue;
            }
            if (word == "--") {
                only_words = true;
                continue;
            }
            if (const auto flag = flags_.find(word); flag != flags_.end()) {
                *flag->second = true;
                continue;
            }
            const size_t equals = word.rfind("--", 0) == 0 ? word.find('=') : word.npos;
            const auto option = options_.find(word.substr(0, equals));
            if (option == options_.end()) throw UsageError{"unknown option " + word};
            if (equals != word.npos) {
                value = word.substr(equals + 1);
            } else if (++i == count) {
                throw UsageError{word + " needs a value"};
            } else {
                value = words[i];
            }
            option->second(value);
        }
        return alone;
    }

private:
    static std::string shown(double value) {
        char text[32];
        std::snprintf(text, sizeof text, "%.10g", value);
        return text;
    }

    std::map<std::string, bool*> flags_;
    std::map<std::string, Take> options_;
};

// How a program opens its bundle.
struct ModelArguments {
    std::string onnxruntime, device, engine, tensorrt;
    int threads = 0;

    void declare(Arguments& arguments) {
        arguments.option("--onnxruntime", onnxruntime), arguments.option("--tensorrt", tensorrt);
        arguments.option("--device", device), arguments.option("--engine", engine);
        arguments.number("--threads", threads, 1, 4096);
    }
    llama_runtime::Model open(const std::string& bundle) const {
        const auto given = [](const std::string& text) { return text.empty() ? nullptr : text.c_str(); };
        llama_runtime::ModelOptions options;
        options.threads = threads, options.onnxruntime = given(onnxruntime), options.device = given(device);
        options.engine = given(engine), options.tensorrt = given(tensorrt);
        return llama_runtime::Model(bundle, options);
    }
};

inline const char* const k_model_usage = "[--threads N] [--onnxruntime FILE] [--device tensorrt [--engine NAME] [--tensorrt FILE]]";

// Runs a program's body; an error is one sentence on stderr, with its hint, and exit code 2.
inline int run_program(const std::string& usage, const std::function<int()>& body) {
    try {
        const int code = body();
        if (!std::cout.flush() || std::fflush(stdout) != 0) throw std::runtime_error("the output cannot be written");
        return code;
    } catch (const UsageError& error) {
        std::fprintf(stderr, "error: %s\nhint: %s\n", error.message.c_str(), usage.c_str());
    } catch (const llama_runtime::Error& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        if (!error.hint().empty()) std::fprintf(stderr, "hint: %s\n", error.hint().c_str());
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
    }
    return 2;
}

// A text as a JSON string.
inline std::string quoted(const std::string& text) {
    std::string json = "\"";
    for (const char c : text) {
        char escaped[8];
        if (c == '"' || c == '\\') {
            json += '\\', json += c;
        } else if (static_cast<unsigned char>(c) < 0x20) {
            std::snprintf(escaped, sizeof escaped, "\\u%04x", c);
            json += escaped;
        } else {
            json += c;
        }
    }
    return json + "\"";
}

template <typename Number>
std::string listed(const std::vector<Number>& numbers) {
    std::string json = "[";
    for (const Number number : numbers) json += (json.size() > 1 ? ", " : "") + std::to_string(number);
    return json + "]";
}

}  // namespace programs
