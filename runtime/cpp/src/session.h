// An opened bundle that maps token ids to logits, or whole texts to a head's outputs, and nothing else.
//
// T new tokens, P past tokens, K kv heads, D head_dim, V vocabulary, C capacity. One row.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "manifest.h"
#include "onnxruntime.h"
#include "sampling.h"

namespace llama {

// Bindings for runs of one shape over one cache; between two decodes only the mask's length changes.
struct Step {
    size_t tokens = 0;
    Owned<OrtIoBinding> binding = nothing<OrtIoBinding>();
    std::vector<int64_t> ids, positions;
    std::vector<float> logits;
    std::vector<Owned<OrtValue>> fixed;  // what stays bound
};

// Zeroed memory that is touched as it fills, not when it is made.
struct Buffer {
    explicit Buffer(size_t bytes);
    std::unique_ptr<uint8_t, void (*)(void*)> data;
    size_t bytes;
};

// The keys and values of one conversation; used by one thread at a time.
struct Cache {
    size_t capacity = 0, length = 0;
    std::vector<Buffer> buffers;                // in place: key and value of each layer, [1, K, C, D]
    std::vector<Owned<OrtValue>> values;        // growing: [1, K, P, D]
    std::vector<int64_t> ones;                  // any mask [1, S] of ones is a prefix of it
    int64_t keep = 1, rope_length = 0;
    Step step;
};

// What a whole text gives: the numbers of an output, and its dimensions.
struct Output {
    std::vector<float> values;
    std::vector<int64_t> dims;
};

using Outputs = std::map<std::string, Output>;

constexpr size_t k_chunk_tokens = 512;

struct SessionOptions {
    int threads;           // 0: every core
    std::string library;   // path of ONNX Runtime's; empty: found
    size_t chunk_tokens;   // the most of a prompt in one run, which bounds the memory of its scores
};

class Session {
public:
    // Loads the graph. Throws LR_ERROR_SESSION, LR_ERROR_LIBRARY.
    Session(const std::string& folder, const Manifest& manifest, const SessionOptions& options);

    // Any number of threads may call these, each with a cache of its own.
    std::unique_ptr<Cache> new_cache(size_t capacity) const;
    // Reads tokens behind what the cache holds, a chunk at a time; [V], the logits that follow them.
    Logits prefill(const Ids& tokens, Cache& cache) const;
    Logits decode(int32_t token, Cache& cache) const;
    // Forgets all but the first positions.
    void truncate(Cache& cache, size_t length) const;
    // Makes room for more positions, keeping those that there are.
    void enlarge(Cache& cache, size_t capacity) const;

    // One text, alone, through a graph that reads it whole.
    Outputs run_text(const Ids& tokens, const std::vector<std::string>& outputs) const;

private:
    void check_contract(const std::string& path) const;
    void check_capacity(size_t capacity) const;
    size_t row_bytes() const;  // of one position of one head
    void check_tokens(const Ids& tokens, const Cache& cache) const;
    void bind(Cache& cache, size_t tokens) const;
    void run(const int32_t* tokens, size_t count, Cache& cache) const;
    Owned<OrtValue> tensor(void* data, size_t bytes, const std::vector<int64_t>& dims, ONNXTensorElementDataType type) const;
    std::vector<std::string> cache_names(bool present) const;
    bool takes(const char* input) const;

    const OrtApi& api_;
    const Manifest& manifest_;
    size_t chunk_tokens_;
    Owned<OrtEnv> env_;
    Owned<OrtSession> session_;
    Owned<OrtMemoryInfo> memory_;
    std::vector<std::string> past_, present_;
};

}  // namespace llama
