#include "chat.h"

#include <algorithm>

#include "errors.h"

namespace llama {
namespace {

const char* const k_way_out = "render the prompt, and generate from it with parse_special";

std::string strip(const std::string& text) {
    const auto [begin, end] = trimmed(text, 0, text.size());
    return text.substr(begin, end - begin);
}

// Cut behind its first character, a token's name in a text is not found as the token.
void add_text(std::vector<Part>& parts, const std::string& text, const std::vector<std::string>& names) {
    size_t begin = 0;
    for (size_t at = 0; at < text.size();) {
        const auto here = [&](const std::string& name) { return text.compare(at, name.size(), name) == 0; };
        const auto found = std::find_if(names.begin(), names.end(), here);
        if (found == names.end()) {
            ++at;
            continue;
        }
        const size_t cut = at + character_at(text, at).bytes;
        parts.emplace_back(text.substr(begin, cut - begin));
        begin = cut, at += found->size();
    }
    if (begin < text.size()) parts.emplace_back(text.substr(begin));
}

// Ids that the roles write although the vocabulary finds them in any text.
std::vector<std::string> found_in_text(const ChatRoles& roles, const Vocabulary& vocabulary) {
    std::vector<std::string> names;
    const auto add = [&](const std::vector<Part>& parts) {
        for (const Part& part : parts) {
            const auto* id = std::get_if<int32_t>(&part);
            for (const AddedToken& token : vocabulary.added()) {
                if (id && token.id == static_cast<uint32_t>(*id) && !token.special) names.emplace_back(token.name);
            }
        }
    };
    for (const auto& [front, next] : roles.between) {
        for (const auto& [role, parts] : next) add(parts);
    }
    add(roles.answer);
    std::sort(names.begin(), names.end(), [](const auto& a, const auto& b) { return a.size() > b.size(); });
    return names;
}

}  // namespace

Prompt chat_prompt(const Model& model, const std::vector<Message>& messages) {
    if (!model.manifest.chat) {
        throw Error(LR_ERROR_CHAT, model.manifest.why_no_chat, k_way_out);
    }
    const ChatRoles& roles = *model.manifest.chat;
    const Tokenizer& tokenizer = model.need_tokenizer();
    if (messages.empty()) throw Error(LR_ERROR_CHAT, "there are no messages, needs at least one");
    if (messages.back().first != "user") throw Error(LR_ERROR_CHAT, "the last message is of role " + messages.back().first + ", needs user", k_way_out);
    std::vector<Part> parts;
    std::string text, front;
    const std::vector<std::string> names = found_in_text(roles, tokenizer.vocabulary());
    const auto add = [&](const std::vector<Part>& template_parts) {
        for (const Part& part : template_parts) {
            if (const auto* own = std::get_if<std::string>(&part)) {
                text += *own;
            } else {
                add_text(parts, text, names);
                text.clear();
                parts.push_back(part);
            }
        }
    };
    for (const auto& [role, content] : messages) {
        if (invalid_utf8(content) != std::string::npos) throw Error(LR_ERROR_PROMPT, "a message is not valid UTF-8");
        const auto next = roles.between.find(front);
        if (next == roles.between.end() || !next->second.count(role)) {
            const std::string where = front.empty() ? "as the first" : "behind one of role " + front;
            throw Error(LR_ERROR_CHAT, "a message of role " + role + " stands " + where + ", the template has no place for it there",
                        std::string("perhaps a system message, then user and assistant in turn; else ") + k_way_out);
        }
        if (role == "system" && strip(content).empty()) {
            throw Error(LR_ERROR_CHAT, "the system message is empty, and templates differ there", "leave it out");
        }
        add(next->second.at(role));
        const auto trim = roles.trim.find(role);
        text += trim != roles.trim.end() && trim->second ? strip(content) : content;
        front = role;
    }
    add(roles.answer);
    add_text(parts, text, names);
    Prompt prompt{tokenizer.encode_parts(parts), true, {}};
    if (roles.eos_token) {
        if (const auto id = tokenizer.vocabulary().id_of_added(*roles.eos_token)) prompt.answer_end = static_cast<int32_t>(*id);
    }
    return prompt;
}

}  // namespace llama
