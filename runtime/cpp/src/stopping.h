// Stop strings: end the text in front of the first of them, and never show a part of one.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace llama {

class StopMatcher {
public:
    explicit StopMatcher(std::vector<std::string> stop) : stop_(std::move(stop)) {}
    // The text that is safe to show now.
    std::string push(const std::string& text);
    // Ends the text: what was held back did not become a stop string.
    std::string flush();
    bool stopped() const { return stopped_; }

private:
    std::string release(size_t length);

    std::vector<std::string> stop_;
    std::string held_;
    bool stopped_ = false;
};

}  // namespace llama
