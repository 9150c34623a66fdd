#include "stopping.h"

#include <algorithm>

namespace llama {

std::string StopMatcher::push(const std::string& text) {
    if (stopped_) return {};
    held_ += text;
    // The one that is complete first; of several that end together, the longest.
    std::pair<size_t, size_t> best{held_.npos, held_.npos};  // (end, start)
    size_t longest = 0;
    for (const std::string& stop : stop_) {
        const size_t start = held_.find(stop);
        if (start != held_.npos) best = std::min(best, {start + stop.size(), start});
        longest = std::max(longest, stop.size() - 1);
    }
    if (best.first != held_.npos) {
        stopped_ = true;
        return release(best.second);
    }
    // Hold back the longest end that some stop string begins with.
    for (size_t length = std::min(longest, held_.size()); length > 0; --length) {
        const std::string_view end = std::string_view(held_).substr(held_.size() - length);
        const auto begins = [&](const std::string& stop) { return stop.compare(0, length, end) == 0; };
        if (std::any_of(stop_.begin(), stop_.end(), begins)) return release(held_.size() - length);
    }
    return release(held_.size());
}

std::string StopMatcher::flush() { return stopped_ ? std::string() : release(held_.size()); }

std::string StopMatcher::release(size_t length) {
    std::string released = held_.substr(0, length);
    held_.erase(0, length);
    return released;
}

}  // namespace llama
