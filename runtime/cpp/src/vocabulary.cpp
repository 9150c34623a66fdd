#include "vocabulary.h"

#include <algorithm>
#include <cstring>

#include "errors.h"
#include "files.h"

namespace llama {
namespace {

constexpr size_t k_max_bytes = size_t{1} << 30;
constexpr size_t k_header_bytes = 48;
constexpr uint32_t k_none = 0xFFFFFFFF, k_version = 1, k_max_tokens = 1u << 24;
constexpr std::string_view k_space = "\xE2\x96\x81";  // U+2581
enum : uint8_t { k_no_token = 0, k_text = 1, k_byte = 2 };

[[noreturn]] void refuse(const std::string& where, const std::string& what) {
    throw Error(LR_ERROR_TOKENIZER, where + ": " + what, k_copy_again);
}

}  // namespace

Vocabulary Vocabulary::read(const std::string& path) {
    return Vocabulary(read_file(path, k_max_bytes, LR_ERROR_TOKENIZER), path);
}

Vocabulary::Vocabulary(std::vector<uint8_t> content, const std::string& where) : content_(std::move(content)) {
    if (content_.size() < k_header_bytes || std::memcmp(content_.data(), "llamatok", 8) != 0) {
        refuse(where, "not a tokenizer.bin");
    }
    uint32_t header[10];
    std::memcpy(header, content_.data() + 8, sizeof header);
    const uint32_t version = header[0], kind = header[1], unknown = header[3];
    if (version != k_version) {
        refuse(where, "version " + std::to_string(version) + ", this runtime reads " + std::to_string(k_version));
    }
    flags_ = header[2], tokens_ = header[4], opening_count_ = header[5], merge_count_ = header[6];
    const uint32_t added = header[7];
    const uint64_t text_bytes = header[8], name_bytes = header[9];
    if (kind > 1 || flags_ > 7 || tokens_ == 0 || tokens_ > k_max_tokens || added > tokens_) {
        refuse(where, "kind, flags or number of tokens is out of range");
    }
    kind_ = static_cast<Kind>(kind);
    const uint64_t numbers = uint64_t{tokens_} + opening_count_ + uint64_t{4} * merge_count_ + uint64_t{3} * added;
    const uint64_t expected = k_header_bytes + 4 * numbers + tokens_ + text_bytes + name_bytes;
    if (expected != content_.size()) {
        refuse(where, std::to_string(content_.size()) + " bytes, its header needs " + std::to_string(expected));
    }
    // The header is a multiple of 4 bytes, and so is the vector's memory.
    const auto* numbers_at = reinterpret_cast<const uint32_t*>(content_.data() + k_header_bytes);
    text_ends_ = numbers_at;
    opening_ = text_ends_ + tokens_;
    merges_ = reinterpret_cast<const Merge*>(opening_ + opening_count_);
    const uint32_t* about = opening_ + opening_count_ + size_t{4} * merge_count_;
    const uint32_t* name_ends = about + size_t{2} * added;
    kinds_ = reinterpret_cast<const uint8_t*>(name_ends + added);
    texts_ = reinterpret_cast<const char*>(kinds_ + tokens_);
    const char* names = texts_ + text_bytes;

    const auto check_ends = [&](const uint32_t* ends, uint32_t count, uint64_t total) {
        if (!std::is_sorted(ends, ends + count) || (count ? ends[count - 1] : 0) != total) {
            refuse(where, "a text ends outside of the texts");
        }
    };
    const auto check_id = [&](uint32_t id) {
        if (id >= tokens_) refuse(where, "token " + std::to_string(id) + ", it has " + std::to_string(tokens_));
    };
    check_ends(text_ends_, tokens_, text_bytes);
    check_ends(name_ends, added, name_bytes);
    if (unknown != k_none) check_id(unknown), unknown_ = unknown;
    for (uint32_t i = 0; i < opening_count_; ++i) check_id(opening_[i]);
    for (uint32_t i = 0; i < merge_count_; ++i) {
        for (const uint32_t id : {merges_[i].left, merges_[i].right, merges_[i].joint}) check_id(id);
    }
    const auto by_text = [&](uint32_t a, uint32_t b) { return text(a) < text(b); };
    const auto by_pair = [](const Merge& a, const Merge& b) {
        return a.left != b.left ? a.left < b.left : a.right < b.right;
    };
    if (!std::is_sorted(opening_, opening_ + opening_count_, by_text) ||
        !std::is_sorted(merges_, merges_ + merge_count_, by_pair)) {
        refuse(where, "its tables are out of order");
    }
    special_.assign(tokens_, false);
    for (uint32_t i = 0; i < added; ++i) {
        const uint32_t id = about[2 * i], begin = i ? name_ends[i - 1] : 0;
        check_id(id);
        const std::string_view name(names + begin, name_ends[i] - begin);
        if (name.empty() || invalid_utf8(name) != name.npos) refuse(where, "the name of an added token is not UTF-8");
        added_.push_back({id, about[2 * i + 1] == 1, name});
        if (added_.back().special) special_[id] = true;
    }
    std::stable_sort(added_.begin(), added_.end(),
                     [](const AddedToken& a, const AddedToken& b) { return a.name.size() > b.name.size(); });

    bool seen[256] = {};
    const auto know_byte = [&](uint32_t id) {
        if (text(id).size() != 1) return;
        const auto byte = static_cast<uint8_t>(text(id)[0]);
        byte_tokens_[byte] = id, seen[byte] = true;
    };
    if (kind_ == Kind::bytes) {
        for (uint32_t i = 0; i < opening_count_; ++i) know_byte(opening_[i]);
    } else {
        for (uint32_t id = 0; id < tokens_; ++id) {
            if (kinds_[id] == k_byte) know_byte(id);
        }
    }
    if (!std::all_of(seen, seen + 256, [](bool known) { return known; })) refuse(where, "a byte has no token");
}

std::string_view Vocabulary::text(uint32_t id) const {
    const uint32_t begin = id ? text_ends_[id - 1] : 0;
    return {texts_ + begin, text_ends_[id] - begin};
}

bool Vocabulary::is_special(int64_t id) const { return id >= 0 && id < tokens_ && special_[static_cast<size_t>(id)]; }

std::optional<uint32_t> Vocabulary::id_of_added(std::string_view name) const {
    for (const AddedToken& token : added_) {
        if (token.name == name) return token.id;
    }
    return std::nullopt;
}

std::optional<uint32_t> Vocabulary::opening(std::string_view part) const {
    const uint32_t* end = opening_ + opening_count_;
    const uint32_t* found = std::lower_bound(
        opening_, end, part, [&](uint32_t id, std::string_view wanted) { return text(id) < wanted; });
    if (found == end || text(*found) != part) return std::nullopt;
    return *found;
}

const Merge* Vocabulary::merge(uint32_t left, uint32_t right) const {
    const Merge* end = merges_ + merge_count_;
    const Merge* found = std::lower_bound(merges_, end, std::pair(left, right), [](const Merge& a, const auto& pair) {
        return a.left != pair.first ? a.left < pair.first : a.right < pair.second;
    });
    return found != end && found->left == left && found->right == right ? found : nullptr;
}

std::string Vocabulary::token_bytes(int64_t id) const {
    if (id < 0 || id >= tokens_) return {};
    const auto index = static_cast<uint32_t>(id);
    std::string bytes(text(index));
    if (kind_ == Kind::pieces && kinds_[index] == k_text) {
        for (size_t at = 0; (at = bytes.find(k_space, at)) != bytes.npos; ++at) bytes.replace(at, k_space.size(), " ");
    }
    return bytes;
}

std::string Vocabulary::first_token_bytes(int64_t id) const {
    std::string bytes = token_bytes(id);
    // A piece that begins with U+2581, not one with a space of its own.
    const bool strips = (flags_ & 2) && id >= 0 && id < tokens_ && kind_ == Kind::pieces &&
                        text(static_cast<uint32_t>(id)).substr(0, k_space.size()) == k_space;
    return strips ? bytes.substr(1) : bytes;
}

}  // namespace llama
