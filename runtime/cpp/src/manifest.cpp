#include "manifest.h"

#include <set>

#include "errors.h"
#include "fields.h"
#include "files.h"

namespace llama {
namespace {

constexpr size_t k_max_bytes = size_t{64} << 20;
constexpr int64_t k_max_count = int64_t{1} << 31;

CacheSpec read_cache(const Field& field) {
    const auto name = [&](const char* key) {
        const std::string found = field[key].string();
        if (found.find("{i}") == found.npos) field[key].refuse("a name with {i} for the layer");
        return found;
    };
    CacheSpec cache;
    cache.layers = field["num_hidden_layers"].integer(1, 1 << 16);
    cache.kv_heads = field["num_key_value_heads"].integer(1, 1 << 20);
    cache.head_dim = field["head_dim"].integer(1, 1 << 20);
    cache.dtype = field["dtype"].one_of({"float32", "float16", "int8"});
    cache.key_name = name("key_name"), cache.value_name = name("value_name");
    cache.present_key_name = name("present_key_name"), cache.present_value_name = name("present_value_name");
    cache.in_place = field["in_place"].boolean();
    return cache;
}

std::vector<Part> read_parts(const Field& field) {
    return field.list([](const Field& part) -> Part {
        try {
            return part.string();
        } catch (const Error&) {
            return static_cast<int32_t>(part.integer(0, k_max_count - 1));
        }
    });
}

ChatRoles read_roles(const Field& roles, const Field& special_tokens) {
    ChatRoles chat;
    roles["between"].items([&](const std::string& front, const Field& next) {
        next.items([&](const std::string& role, const Field& parts) { chat.between[front][role] = read_parts(parts); });
    });
    roles["trim"].items([&](const std::string& role, const Field& trims) { chat.trim[role] = trims.boolean(); });
    chat.answer = read_parts(roles["answer"]);
    if (special_tokens.has("eos_token")) chat.eos_token = special_tokens["eos_token"].string();
    return chat;
}

Probe read_probe(const Field& field, bool of_output) {
    Probe probe;
    const auto index = [](const Field& value) { return value.integer(0); };
    const auto number = [](const Field& value) { return value.number(); };
    probe.output = of_output ? field["output"].string() : "";
    probe.position = of_output ? 0 : field["position"].integer(0);
    probe.indices = field[of_output ? "indices" : "token_ids"].list(index);
    probe.values = field[of_output ? "values" : "logits"].list(number);
    if (probe.indices.size() != probe.values.size()) field.refuse("as many numbers as places");
    return probe;
}

class Reader {
public:
    explicit Reader(const json& document) : document_(document), root_(document_, "") {}

    Manifest read() {
        Manifest m;
        for (const char* name : {"created_with", "weights", "attention", "source", "parity"}) (void)root_[name];
        m.vocab_size = root_["limits"]["vocab_size"].integer(1, k_max_count - 1);
        m.max_positions = root_["limits"]["max_position_embeddings"].integer(1, k_max_count - 1);
        const auto token = [&](const Field& id) { return static_cast<int32_t>(id.integer(0, m.vocab_size - 1)); };
        m.task = root_["task"].string(), m.precision = root_["precision"].string();
        m.attention = root_["attention"].string();
        m.model_path = root_["model"]["path"].path();
        const Field data = root_["model"]["external_data_folder"];
        m.external_data_folder = data.string() == "." ? "." : data.path();
        m.inputs = root_["inputs"].list(read_spec), m.outputs = root_["outputs"].list(read_spec);
        m.optional_inputs = root_["optional_inputs"].list(read_spec);
        const auto path = [](const Field& value) { return value.path(); };
        m.embed_tokens = root_["embed_tokens"].optional(path);
        m.cache = root_["cache"].optional(read_cache);
        m.soft_prompt = root_["soft_prompt"].optional([&](const Field& f) { return f["path"].path(); });
        m.rope_depends_on_length = !root_["rope"].is_null();
        const Field tokens = root_["tokens"];
        m.bos = tokens["bos_token_id"].optional(token), m.pad = tokens["pad_token_id"].optional(token);
        m.eos = tokens["eos_token_ids"].list(token);
        m.files = root_["files"].list([](const Field& f) {
            return FileEntry{f["path"].path(), static_cast<uint64_t>(f["size_bytes"].integer(0))};
        });
        read_labels(m);
        read_tokenizer(m);
        read_known(m, token);
        check(m);
        return m;
    }

private:
    void read_labels(Manifest& m) {
        m.classification = root_["classification"].optional([](const Field& f) {
            Classification found{f["labels"].list([](const Field& label) { return label.string(); }), ""};
            if (found.labels.empty()) f["labels"].refuse("at least one label");
            if (!f["problem_type"].is_null()) found.problem_type = f["problem_type"].string();
            return found;
        });
    }

    void read_tokenizer(Manifest& m) {
        std::string vocabulary;
        m.tokenizer = root_["tokenizer"].optional([&](const Field& f) {
            vocabulary = f["path"].path();
            return TokenizerFile{f["add_bos"].boolean(), f["add_eos"].boolean()};
        });
        if (m.tokenizer && m.tokenizer->add_bos && !m.bos) refuse_document("tokens.bos_token_id is null, tokenizer.add_bos needs one");
        if (!vocabulary.empty() && !m.lists(vocabulary)) refuse_document("files does not list \"" + vocabulary + "\"");
        const Field chat = root_["chat_template"];
        if (chat.is_null()) {
            m.why_no_chat = "the bundle has no chat template";
        } else if (!chat.has("roles") || chat["roles"].is_null()) {
            m.why_no_chat = "the bundle's chat template cannot be reduced to roles";
        } else {
            m.chat = read_roles(chat["roles"], chat["special_tokens"]);
        }
    }

    template <typename Token>
    void read_known(Manifest& m, Token token) {
        const auto index = [](const Field& value) { return value.integer(0); };
        const auto text = [](const Field& value) { return value.string(); };
        const auto answers = root_["known_answers"].list([&](const Field& f) {
            return KnownAnswer{f["prompt"].optional(text), f["prompt_tokens"].list(token), f["tokens"].list(token),
                               f["near_ties"].list(index),
                               f["probes"].list([](const Field& p) { return read_probe(p, false); }),
                               f["tolerance"].number()};
        });
        const auto outputs = root_["known_outputs"].list([&](const Field& f) {
            return KnownAnswer{f["text"].optional(text), f["token_ids"].list(token), {}, {},
                               f["probes"].list([](const Field& p) { return read_probe(p, true); }),
                               f["tolerance"].number()};
        });
        for (const KnownAnswer& answer : answers) {
            if (answer.tokens.empty()) refuse_document("known_answers have one without tokens");
        }
        m.known = answers;
        m.known.insert(m.known.end(), outputs.begin(), outputs.end());
        for (const KnownAnswer& answer : m.known) {
            if (answer.prompt_tokens.empty()) refuse_document("known_answers or known_outputs have one without tokens");
            for (const Probe& probe : answer.probes) {
                for (const int64_t place : probe.indices) {
                    if (probe.output.empty() && place >= m.vocab_size) refuse_document("known_answers name an unknown token");
                }
            }
        }
    }

    static void check(const Manifest& m) {
        std::set<std::string> paths;
        for (const FileEntry& file : m.files) {
            if (file.path == "manifest.json" || !paths.insert(file.path).second) {
                refuse_document("files lists \"" + file.path + "\", needs each file once and manifest.json never");
            }
        }
        if (!paths.count(m.model_path)) refuse_document("files does not list \"" + m.model_path + "\"");
        if (m.cache.has_value() != (m.task == "text-generation")) refuse_document("cache: text-generation alone has one, task is " + m.task);
    }

    const json& document_;
    Field root_;
};

}  // namespace

TensorSpec read_spec(const Field& field) {
    const auto dim = [](const Field& value) {
        try {
            return std::to_string(value.integer(0));
        } catch (const Error&) {
            return value.string();
        }
    };
    return {field["name"].string(), field["dtype"].string(), field["shape"].list(dim)};
}

bool Manifest::lists(const std::string& path) const {
    for (const FileEntry& file : files) {
        if (file.path == path) return true;
    }
    return false;
}

std::string Manifest::hidden_state() const {
    std::string last;
    for (const TensorSpec& spec : outputs) {
        if (spec.name == "last_hidden_state" || spec.name.rfind("hidden_states.", 0) == 0) last = spec.name;
    }
    return last;
}

Manifest parse_manifest(const std::string& text, const std::string& where) {
    try {
        const json document = parse_document(text, "a bundle", "llama-export");
        return Reader(document).read();
    } catch (Error& error) {
        error.message = where + ": " + error.message;
        throw;
    }
}

Manifest read_manifest(const std::string& folder) {
    const std::string path = folder + "/manifest.json";
    if (!file_bytes(path)) {
        throw Error(LR_ERROR_MANIFEST, folder + ": not a bundle, it has no manifest.json", "name the folder that `llama-export onnx` wrote");
    }
    const std::vector<uint8_t> content = read_file(path, k_max_bytes, LR_ERROR_MANIFEST);
    return parse_manifest(std::string(content.begin(), content.end()), path);
}

void check_structure(const std::string& folder, const Manifest& manifest) {
    const char* const hint = "the bundle is incomplete or was changed; copy the whole folder again, or export again";
    for (const FileEntry& file : manifest.files) {
        const std::string path = folder + "/" + file.path;
        const auto bytes = file_bytes(path);
        if (!bytes) throw Error(LR_ERROR_MANIFEST, path + ": listed in the manifest, but missing", hint);
        if (*bytes != file.size_bytes) {
            throw Error(LR_ERROR_MANIFEST, path + ": " + std::to_string(*bytes) + " bytes, the manifest lists " + std::to_string(file.size_bytes), hint);
        }
    }
}

}  // namespace llama
