// UTF-8, and the classes of characters that Llama 3's split rule knows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace llama {

// The character at `at`, and how many bytes it takes; of valid UTF-8.
struct Character {
    uint32_t point;
    size_t bytes;
};
Character character_at(std::string_view text, size_t at);

// Where the first invalid byte is; npos where there is none.
size_t invalid_utf8(std::string_view text);

bool is_letter(uint32_t point);
bool is_number(uint32_t point);
bool is_space(uint32_t point);  // \s; Python's str.isspace has U+001C to U+001F too, and so has is_blank
bool is_blank(uint32_t point);

// Where what is not blank begins and ends in a part of a text; of blanks alone, `end` twice.
std::pair<size_t, size_t> trimmed(std::string_view text, size_t start, size_t end);

// How bytes that are no UTF-8 are shown: one U+FFFD for each (pieces), or for each maximal subpart.
enum class Invalid { each_byte, each_subpart };

// Decodes bytes as they come; what may still become a character is held back, at most three bytes.
class Utf8Stream {
public:
    explicit Utf8Stream(Invalid invalid) : invalid_(invalid) {}
    std::string push(std::string_view bytes);
    std::string flush();

private:
    Invalid invalid_;
    std::string held_;
};

}  // namespace llama
