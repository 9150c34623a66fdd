// tokenizer.bin: the table of tokens and how they join, read once and searched where it lies.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "unicode.h"

namespace llama {

enum class Kind : uint32_t { pieces = 0, bytes = 1 };

struct Merge {
    uint32_t left, right, rank, joint;
};

// A token that is found in a text by its name.
struct AddedToken {
    uint32_t id;
    bool special;
    std::string_view name;
};

class Vocabulary {
public:
    // Throws LR_ERROR_TOKENIZER where the file is not what FORMAT.md says; `where` names it.
    Vocabulary(std::vector<uint8_t> content, const std::string& where);
    static Vocabulary read(const std::string& path);

    Vocabulary(Vocabulary&&) = default;
    Vocabulary(const Vocabulary&) = delete;

    Kind kind() const { return kind_; }
    bool puts_space_in_front() const { return flags_ & 1; }
    bool takes_parts_whole() const { return flags_ & 4; }
    Invalid invalid() const { return kind_ == Kind::pieces ? Invalid::each_byte : Invalid::each_subpart; }
    std::optional<uint32_t> unknown() const { return unknown_; }
    const std::vector<AddedToken>& added() const { return added_; }  // the longest name first
    bool is_special(int64_t id) const;
    std::optional<uint32_t> id_of_added(std::string_view name) const;

    // The token that a character, byte or whole part begins as.
    std::optional<uint32_t> opening(std::string_view text) const;
    const Merge* merge(uint32_t left, uint32_t right) const;
    uint32_t byte_token(uint8_t byte) const { return byte_tokens_[byte]; }

    // The bytes a token stands for; empty for an id that there is not.
    std::string token_bytes(int64_t id) const;
    // The same for the token that opens a text: it may lose a space.
    std::string first_token_bytes(int64_t id) const;

private:
    std::string_view text(uint32_t id) const;

    std::vector<uint8_t> content_;
    Kind kind_ = Kind::pieces;
    uint32_t flags_ = 0, tokens_ = 0, merge_count_ = 0, opening_count_ = 0;
    std::optional<uint32_t> unknown_;
    const uint32_t* text_ends_ = nullptr;
    const uint32_t* opening_ = nullptr;
    const Merge* merges_ = nullptr;
    const uint8_t* kinds_ = nullptr;
    const char* texts_ = nullptr;
    std::vector<AddedToken> added_;
    std::vector<bool> special_;
    uint32_t byte_tokens_[256] = {};
};

}  // namespace llama
