// Text to token ids and back, by the rules of FORMAT.md; text is text, whatever special tokens are called.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "vocabulary.h"

namespace llama {

using Ids = std::vector<int32_t>;
using Part = std::variant<std::string, int32_t>;

class Tokenizer {
public:
    Tokenizer(Vocabulary vocabulary, std::optional<int32_t> bos, std::optional<int32_t> eos)
        : vocabulary_(std::move(vocabulary)), bos_(bos), eos_(eos) {}

    const Vocabulary& vocabulary() const { return vocabulary_; }

    // Throws LR_ERROR_PROMPT where the text is not UTF-8.
    Ids encode(std::string_view text, bool add_special, bool parse_special) const;
    // Texts with special tokens between them; nothing is added, and texts stay text.
    Ids encode_parts(const std::vector<Part>& parts) const;
    std::string decode(const Ids& ids, bool skip_special) const;

    // What is put in front of a text and behind it; nothing where the model wants none.
    std::optional<int32_t> bos() const { return bos_; }
    std::optional<int32_t> eos() const { return eos_; }

private:
    void encode_text(std::string_view text, bool parse_special, bool in_front, Ids& ids) const;

    Vocabulary vocabulary_;
    std::optional<int32_t> bos_, eos_;
};

}  // namespace llama
