// manifest.json, version 1: the one file a runtime reads to know everything about a bundle.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tokenizer.h"

namespace llama {

class Field;

struct TensorSpec {
    std::string name, dtype;
    std::vector<std::string> shape;  // numbers as text; anything else names a dynamic dimension
};

struct CacheSpec {
    int64_t layers, kv_heads, head_dim;
    std::string dtype;  // float32, float16 or int8
    std::string key_name, value_name, present_key_name, present_value_name;  // {i} for the layer
    bool in_place;
};

struct Classification {
    std::vector<std::string> labels;
    std::string problem_type;  // empty: by the number of labels
};

struct TokenizerFile {
    bool add_bos, add_eos;
};

// A chat template reduced to the text around each message, which depends on the roles in front and behind.
struct ChatRoles {
    std::map<std::string, std::map<std::string, std::vector<Part>>> between;  // "" in front of the first message
    std::map<std::string, bool> trim;                                         // role -> its content is stripped
    std::vector<Part> answer;                                                 // behind the last message, a user's
    std::optional<std::string> eos_token;
};

struct FileEntry {
    std::string path;
    uint64_t size_bytes;
};

// Some of the reference's numbers: logits of a step, or values of an output.
struct Probe {
    std::string output;  // empty for logits
    int64_t position;    // of a step; unused for an output
    std::vector<int64_t> indices;
    std::vector<double> values;
};

// A known answer of text generation, or (without tokens) known numbers of a text's outputs.
struct KnownAnswer {
    std::optional<std::string> prompt;
    Ids prompt_tokens, tokens;
    std::vector<int64_t> near_ties;
    std::vector<Probe> probes;
    double tolerance;
};

struct Manifest {
    std::string task, precision, attention;
    std::string model_path, external_data_folder;
    std::vector<TensorSpec> inputs, optional_inputs, outputs;
    std::optional<std::string> embed_tokens;
    std::optional<CacheSpec> cache;
    std::optional<std::string> soft_prompt;
    std::optional<Classification> classification;
    int64_t max_positions, vocab_size;
    bool rope_depends_on_length;
    std::optional<int32_t> bos, pad;
    std::vector<int32_t> eos;
    std::optional<TokenizerFile> tokenizer;
    std::optional<ChatRoles> chat;
    std::string why_no_chat;
    std::vector<FileEntry> files;
    std::vector<KnownAnswer> known;  // answers, then outputs

    bool lists(const std::string& path) const;
    // The last output that is a hidden state; empty where there is none.
    std::string hidden_state() const;
};

// Read and check a bundle's manifest; throws LR_ERROR_MANIFEST, naming the field.
Manifest read_manifest(const std::string& folder);
Manifest parse_manifest(const std::string& text, const std::string& where);

TensorSpec read_spec(const Field& field);

// Every listed file is there with its size.
void check_structure(const std::string& folder, const Manifest& manifest);

}  // namespace llama
