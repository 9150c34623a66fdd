// Reading a JSON document strictly: whatever is wrong with a value is refused with its place in the document.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace llama {

using nlohmann::json;

// A value and its place in the document. Everything throws LR_ERROR_MANIFEST.
class Field {
public:
    Field(const json& value, std::string place) : value_(value), place_(std::move(place)) {}

    [[noreturn]] void refuse(const std::string& needs) const;
    bool is_null() const { return value_.is_null(); }
    bool has(const char* name) const { return value_.is_object() && value_.contains(name); }
    Field operator[](const char* name) const;
    bool boolean() const;
    int64_t integer(int64_t least, int64_t most = int64_t{1} << 53) const;
    double number() const;
    std::string string() const;
    std::string one_of(std::initializer_list<const char*> choices) const;
    std::string path() const;  // relative, and nothing that could leave the folder
    template <typename Read>
    auto list(Read read) const {
        if (!value_.is_array()) refuse("a list");
        std::vector<decltype(read(*this))> found;
        for (size_t i = 0; i < value_.size(); ++i) found.push_back(read(Field(value_[i], place_ + "[" + std::to_string(i) + "]")));
        return found;
    }
    template <typename Read>
    void items(Read read) const {
        if (!value_.is_object()) refuse("an object");
        for (const auto& [name, value] : value_.items()) read(name, Field(value, place_ + "." + name));
    }
    template <typename Read>
    auto optional(Read read) const -> std::optional<decltype(read(*this))> {
        if (is_null()) return std::nullopt;
        return read(*this);
    }

private:
    const json& value_;
    std::string place_;
};

// What is wrong with the document as a whole.
[[noreturn]] void refuse_document(const std::string& what);

// The document in a file's text: `what` (such as "a bundle") of this format, and of no newer version than 1. No key
// twice in an object, since two readers would read it differently.
json parse_document(const std::string& text, const char* what, const char* format);

}  // namespace llama
