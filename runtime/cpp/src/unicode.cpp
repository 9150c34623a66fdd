#include "unicode.h"

#include <algorithm>
#include <iterator>

namespace llama {
namespace {

struct Range {
    uint32_t first, last;
};
#include "unicode_classes.inc"

template <size_t N>
bool in(const Range (&ranges)[N], uint32_t point) {
    const Range* found = std::upper_bound(
        std::begin(ranges), std::end(ranges), point, [](uint32_t p, const Range& r) { return p < r.first; });
    return found != std::begin(ranges) && point <= found[-1].last;
}

// How far the bytes from `at` on are the beginning of a character, and how long that would be (0: of none).
struct Begun {
    size_t valid, length;
};

Begun begun_at(std::string_view text, size_t at) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned lead = byte(at);
    if (lead < 0x80) return {1, 1};
    const size_t length = lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
    size_t valid = 1;
    for (; valid < length && at + valid < text.size(); ++valid) {
        // The second byte excludes what is too long, surrogates, and what lies beyond U+10FFFF.
        const bool second = valid == 1;
        const unsigned low = second && lead == 0xE0 ? 0xA0 : second && lead == 0xF0 ? 0x90 : 0x80;
        const unsigned high = second && lead == 0xED ? 0x9F : second && lead == 0xF4 ? 0x8F : 0xBF;
        if (byte(at + valid) < low || byte(at + valid) > high) break;
    }
    return {valid, length};
}

}  // namespace

Character character_at(std::string_view text, size_t at) {
    const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[i])); };
    const uint32_t lead = byte(at);
    if (lead < 0x80) return {lead, 1};
    const size_t bytes = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    uint32_t point = lead & (0xFFu >> (bytes + 1));
    for (size_t i = 1; i < bytes; ++i) point = point << 6 | (byte(at + i) & 0x3F);
    return {point, bytes};
}

size_t invalid_utf8(std::string_view text) {
    for (size_t at = 0; at < text.size();) {
        const Begun begun = begun_at(text, at);
        if (begun.valid != begun.length) return at;
        at += begun.length;
    }
    return std::string_view::npos;
}

bool is_letter(uint32_t point) { return in(k_letters, point); }
bool is_number(uint32_t point) { return in(k_numbers, point); }
bool is_space(uint32_t point) { return in(k_spaces, point); }
bool is_blank(uint32_t point) { return is_space(point) || (point >= 0x1C && point <= 0x1F); }

std::pair<size_t, size_t> trimmed(std::string_view text, size_t start, size_t end) {
    size_t first = end, behind = end;
    for (size_t at = start; at < end;) {
        const Character c = character_at(text, at);
        if (!is_blank(c.point)) first = std::min(first, at), behind = at + c.bytes;
        at += c.bytes;
    }
    return {first, behind};
}

std::string Utf8Stream::push(std::string_view bytes) {
    held_ += bytes;
    std::string shown;
    size_t at = 0;
    while (at < held_.size()) {
        const Begun begun = begun_at(held_, at);
        if (begun.valid < begun.length && at + begun.valid == held_.size()) break;  // may be completed yet
        if (begun.valid == begun.length) {
            shown.append(held_, at, begun.length);
        } else {
            for (size_t i = 0; i < (invalid_ == Invalid::each_byte ? begun.valid : 1); ++i) shown += "\xEF\xBF\xBD";
        }
        at += begun.valid;
    }
    held_.erase(0, at);
    return shown;
}

std::string Utf8Stream::flush() {
    std::string shown;
    const size_t marks = invalid_ == Invalid::each_byte ? held_.size() : !held_.empty();
    for (size_t i = 0; i < marks; ++i) shown += "\xEF\xBF\xBD";
    held_.clear();
    return shown;
}

}  // namespace llama
