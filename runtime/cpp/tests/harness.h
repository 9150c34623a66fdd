// Tests without a library: each is a function; what fails is printed with its place.
#pragma once

#include <cstdio>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "errors.h"

namespace harness {

inline int failures = 0;

inline void fail(const char* file, int line, const std::string& what) {
    std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
    ++failures;
}

template <typename T>
std::string shown(const T& value) {
    std::ostringstream text;
    text << value;
    return text.str();
}
template <typename T>
std::string shown(const std::vector<T>& values) {
    std::string text;
    for (const T& value : values) text += shown(value) + " ";
    return text;
}

template <typename A, typename B>
void equal(const char* file, int line, const A& got, const B& wanted) {
    if (!(got == wanted)) fail(file, line, "got " + shown(got) + ", wanted " + shown(wanted));
}

// The body throws an error of this status whose message has this part.
inline void refuses(const char* file, int line, lr_status status, const std::string& part, const std::function<void()>& body) {
    try {
        body();
        fail(file, line, "nothing was thrown, wanted: " + part);
    } catch (const llama::Error& error) {
        if (error.status != status || error.message.find(part) == std::string::npos) fail(file, line, "threw: " + error.message + ", wanted: " + part);
    }
}

}  // namespace harness

#define EQUAL(got, wanted) harness::equal(__FILE__, __LINE__, got, wanted)
#define REFUSES(status, part, ...) harness::refuses(__FILE__, __LINE__, status, part, [&] { __VA_ARGS__; })
