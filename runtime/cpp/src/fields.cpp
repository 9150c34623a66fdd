#include "fields.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "errors.h"

namespace llama {
namespace {

constexpr int k_max_depth = 64;

json parse_json(const std::string& text) {
    std::vector<std::set<std::string>> keys;
    const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
        if (depth > k_max_depth) refuse_document("nested too deeply");
        if (event == json::parse_event_t::object_start) keys.emplace_back();
        if (event == json::parse_event_t::object_end) keys.pop_back();
        if (event == json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second) {
            refuse_document("key \"" + parsed.get<std::string>() + "\" is given twice");
        }
        return true;
    };
    try {
        return json::parse(text, check);
    } catch (const json::exception& error) {
        const std::string what = error.what();
        refuse_document("not JSON: " + what.substr(what.find("] ") == what.npos ? 0 : what.find("] ") + 2));
    }
}

}  // namespace

void refuse_document(const std::string& what) { throw Error(LR_ERROR_MANIFEST, what, k_copy_again); }

json parse_document(const std::string& text, const char* what, const char* format) {
    json document = parse_json(text);
    // Before any other field: a newer version may have changed all of them.
    if (!document.is_object() || document.value("format", json()) != format) {
        throw Error(LR_ERROR_MANIFEST, std::string("not ") + what + " of ours, needs \"format\": \"" + format + "\"");
    }
    const int64_t version = Field(document, "")["version"].integer(1);
    if (version > 1) {
        throw Error(LR_ERROR_MANIFEST, "version " + std::to_string(version) + " is newer than this runtime, which reads 1",
                    "upgrade the runtime, or export the checkpoint again with this version");
    }
    return document;
}

void Field::refuse(const std::string& needs) const {
    std::string shown = value_.is_structured() ? value_.type_name() : value_.dump(-1, ' ', false, json::error_handler_t::replace);
    if (shown.size() > 60) shown = shown.substr(0, 60) + "...";
    throw Error(LR_ERROR_MANIFEST, place_ + " is " + shown + ", needs " + needs, k_copy_again);
}

Field Field::operator[](const char* name) const {
    if (!value_.is_object()) refuse("an object");
    const auto found = value_.find(name);
    const std::string place = place_.empty() ? name : place_ + "." + name;
    if (found == value_.end()) throw Error(LR_ERROR_MANIFEST, place + " is missing", k_copy_again);
    return {*found, place};
}

bool Field::boolean() const {
    if (!value_.is_boolean()) refuse("true or false");
    return value_.get<bool>();
}

int64_t Field::integer(int64_t least, int64_t most) const {
    if (!value_.is_number_integer()) refuse("an integer");
    const bool beyond = value_.is_number_unsigned() && value_.get<uint64_t>() > static_cast<uint64_t>(most);
    if (beyond || value_.get<int64_t>() < least || value_.get<int64_t>() > most) {
        refuse(std::to_string(least) + " to " + std::to_string(most));
    }
    return value_.get<int64_t>();
}

double Field::number() const {
    if (!value_.is_number() || !std::isfinite(value_.get<double>())) refuse("a number");
    return value_.get<double>();
}

std::string Field::string() const {
    if (!value_.is_string()) refuse("a string");
    return value_.get<std::string>();
}

std::string Field::one_of(std::initializer_list<const char*> choices) const {
    const std::string found = string();
    std::string allowed;
    for (const char* choice : choices) {
        if (found == choice) return found;
        allowed += (allowed.empty() ? "one of " : ", ") + std::string(choice);
    }
    refuse(allowed);
}

std::string Field::path() const {
    const std::string found = string();
    bool allowed = !found.empty() && found.find_first_of("\\:") == found.npos;
    for (size_t at = 0; allowed && at <= found.size();) {
        const size_t end = std::min(found.find('/', at), found.size());
        const std::string part = found.substr(at, end - at);
        allowed = !part.empty() && part != "." && part != "..";
        at = end + 1;
    }
    for (const char c : found) allowed = allowed && static_cast<unsigned char>(c) >= 0x20;
    if (!allowed) refuse("a relative path with '/' and without '..'");
    return found;
}

}  // namespace llama
