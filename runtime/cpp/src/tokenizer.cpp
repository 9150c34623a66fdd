#include "tokenizer.h"

#include <algorithm>
#include <queue>

#include "errors.h"

namespace llama {
namespace {

struct Symbol {
    uint32_t id;
    int previous, next;  // -1 where there is none
    bool alive;
};

struct Candidate {
    uint32_t rank;
    int left;
    uint32_t joint;
    // std::priority_queue gives the greatest first.
    bool operator<(const Candidate& other) const {
        return rank != other.rank ? rank > other.rank : left > other.left;
    }
};

// Joins neighbours, the lowest rank first and of equal ones the leftmost, until none join any more.
void join(const Vocabulary& vocabulary, const std::vector<uint32_t>& opening, Ids& ids) {
    const int count = static_cast<int>(opening.size());
    std::vector<Symbol> symbols(opening.size());
    for (int i = 0; i < count; ++i) symbols[i] = {opening[i], i - 1, i + 1 < count ? i + 1 : -1, true};
    std::priority_queue<Candidate> queue;
    const auto consider = [&](int left) {
        const int right = left < 0 ? -1 : symbols[left].next;
        if (right < 0) return;
        if (const Merge* merge = vocabulary.merge(symbols[left].id, symbols[right].id)) {
            queue.push({merge->rank, left, merge->joint});
        }
    };
    for (int i = 0; i + 1 < count; ++i) consider(i);
    while (!queue.empty()) {
        const Candidate top = queue.top();
        queue.pop();
        Symbol& left = symbols[top.left];
        if (!left.alive || left.next < 0) continue;
        Symbol& right = symbols[left.next];
        // Either side may have been joined since with something else.
        const Merge* merge = vocabulary.merge(left.id, right.id);
        if (!merge || merge->joint != top.joint) continue;
        left.id = top.joint, left.next = right.next, right.alive = false;
        if (left.next >= 0) symbols[left.next].previous = top.left;
        consider(left.previous);
        consider(top.left);
    }
    for (int i = 0; i >= 0 && i < count; i = symbols[i].next) ids.push_back(static_cast<int32_t>(symbols[i].id));
}

void encode_pieces(const Vocabulary& vocabulary, std::string_view text, bool in_front, Ids& ids) {
    constexpr std::string_view space = "\xE2\x96\x81";
    std::vector<uint32_t> symbols;
    symbols.reserve(text.size() + 1);
    const auto add = [&](std::string_view character) {
        if (const auto id = vocabulary.opening(character)) {
            symbols.push_back(*id);
        } else {
            for (const char byte : character) symbols.push_back(vocabulary.byte_token(static_cast<uint8_t>(byte)));
        }
    };
    if (in_front && vocabulary.puts_space_in_front()) add(space);
    for (size_t at = 0; at < text.size();) {
        const size_t bytes = character_at(text, at).bytes;
        add(text[at] == ' ' ? space : text.substr(at, bytes));
        at += bytes;
    }
    join(vocabulary, symbols, ids);
}

// What the character at a place is to the split rule.
enum class Class { end, letter, number, newline, space, other };

struct Look {
    Class what;
    size_t bytes;
};

Look look(std::string_view text, size_t at) {
    if (at >= text.size()) return {Class::end, 0};
    const Character c = character_at(text, at);
    const Class what = c.point == '\r' || c.point == '\n' ? Class::newline
                       : is_letter(c.point)               ? Class::letter
                       : is_number(c.point)               ? Class::number
                       : is_space(c.point)                ? Class::space
                                                          : Class::other;
    return {what, c.bytes};
}

// Bytes of 's, 't, 're, 've, 'm, 'll or 'd at a place, in either case; 0 where there is none.
size_t contraction(std::string_view text, size_t at) {
    if (text[at] != '\'' || at + 1 >= text.size()) return 0;
    const auto lower = [&](size_t i) { return i < text.size() ? static_cast<char>(text[i] | 0x20) : '\0'; };
    const char first = lower(at + 1), second = lower(at + 2);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
    if ((first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l')) return 3;
    // U+017F, the long s, is an s without regard to case.
    return text.substr(at + 1, 2) == "\xC5\xBF" ? 3 : 0;
}

// Where the part that begins at `at` ends, by Llama 3's rule; its alternatives in their order.
size_t part_end(std::string_view text, size_t at) {
    if (const size_t bytes = contraction(text, at)) return at + bytes;
    const auto run = [&](size_t from, auto&& takes, int most = -1) {
        for (Look next = look(text, from); most-- != 0 && next.what != Class::end && takes(next.what);
             next = look(text, from)) {
            from += next.bytes;
        }
        return from;
    };
    const auto is_letter = [](Class c) { return c == Class::letter; };
    const auto is_other = [](Class c) { return c == Class::other; };
    const auto is_newline = [](Class c) { return c == Class::newline; };
    const auto is_blank = [](Class c) { return c == Class::newline || c == Class::space; };
    const Look first = look(text, at);
    const Look second = look(text, at + first.bytes);
    if (first.what == Class::letter) return run(at, is_letter);
    if (first.what == Class::number) return run(at, [](Class c) { return c == Class::number; }, 3);
    if (first.what != Class::newline && second.what == Class::letter) return run(at + first.bytes, is_letter);
    if (first.what == Class::other) return run(run(at, is_other), is_newline);
    if (text[at] == ' ' && second.what == Class::other) return run(run(at + 1, is_other), is_newline);
    // White space: up to its last newline; else all of it but the one in front of a word; else all.
    size_t end = at, last = at, behind_newline = at;
    for (Look next = first; is_blank(next.what); next = look(text, end)) {
        last = end, end += next.bytes;
        if (next.what == Class::newline) behind_newline = end;
    }
    if (behind_newline > at) return behind_newline;
    return end == text.size() || last == at ? end : last;
}

void encode_bytes(const Vocabulary& vocabulary, std::string_view text, Ids& ids) {
    std::vector<uint32_t> symbols;
    for (size_t at = 0; at < text.size();) {
        const std::string_view part = text.substr(at, part_end(text, at) - at);
        at += part.size();
        if (vocabulary.takes_parts_whole()) {
            if (const auto whole = vocabulary.opening(part)) {
                ids.push_back(static_cast<int32_t>(*whole));
                continue;
            }
        }
        symbols.clear();
        for (const char byte : part) symbols.push_back(vocabulary.byte_token(static_cast<uint8_t>(byte)));
        join(vocabulary, symbols, ids);
    }
}

void check_text(std::string_view text) {
    const size_t at = invalid_utf8(text);
    if (at != text.npos) {
        throw Error(LR_ERROR_PROMPT, "the text is not valid UTF-8: byte " + std::to_string(at),
                    "check the encoding of the file or terminal that the text comes from");
    }
    if (text.size() > (size_t{1} << 30)) throw Error(LR_ERROR_PROMPT, "the text is longer than 2^30 bytes");
}

}  // namespace

void Tokenizer::encode_text(std::string_view text, bool parse_special, bool in_front, Ids& ids) const {
    const auto rest = [&](std::string_view part) {
        if (part.empty()) return;
        if (vocabulary_.kind() == Kind::pieces) {
            encode_pieces(vocabulary_, part, in_front, ids);
        } else {
            encode_bytes(vocabulary_, part, ids);
        }
    };
    std::vector<const AddedToken*> names;
    bool may_begin[256] = {};
    for (const AddedToken& token : vocabulary_.added()) {
        if (token.special && !parse_special) continue;
        names.push_back(&token);
        may_begin[static_cast<uint8_t>(token.name[0])] = true;
    }
    size_t begin = 0;
    for (size_t at = 0; at < text.size();) {
        const AddedToken* found = nullptr;
        if (may_begin[static_cast<uint8_t>(text[at])]) {
            const auto stands_here = [&](const AddedToken* t) { return text.substr(at, t->name.size()) == t->name; };
            const auto first = std::find_if(names.begin(), names.end(), stands_here);
            found = first == names.end() ? nullptr : *first;
        }
        if (!found) {
            ++at;
            continue;
        }
        rest(text.substr(begin, at - begin));
        ids.push_back(static_cast<int32_t>(found->id));
        at += found->name.size(), begin = at, in_front = true;
    }
    rest(text.substr(begin));
}

Ids Tokenizer::encode(std::string_view text, bool add_special, bool parse_special) const {
    check_text(text);
    Ids ids;
    if (add_special && bos_) ids.push_back(*bos_);
    encode_text(text, parse_special, true, ids);
    if (add_special && eos_) ids.push_back(*eos_);
    return ids;
}

Ids Tokenizer::encode_parts(const std::vector<Part>& parts) const {
    Ids ids;
    bool in_front = true;
    for (const Part& part : parts) {
        if (const auto* id = std::get_if<int32_t>(&part)) {
            ids.push_back(*id);
            in_front = true;
        } else if (const auto& text = std::get<std::string>(part); !text.empty()) {
            check_text(text);
            encode_text(text, false, in_front, ids);
            in_front = false;
        }
    }
    return ids;
}

std::string Tokenizer::decode(const Ids& ids, bool skip_special) const {
    Utf8Stream stream(vocabulary_.invalid());
    std::string text;
    bool opens = true;
    for (const int32_t id : ids) {
        if (skip_special && vocabulary_.is_special(id)) continue;
        text += stream.push(opens ? vocabulary_.first_token_bytes(id) : vocabulary_.token_bytes(id));
        opens = false;
    }
    return text + stream.flush();
}

}  // namespace llama
