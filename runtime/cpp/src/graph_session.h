// The bundle's graph in ONNX Runtime: the cache in place where the graph writes it there, growing where not.
//
// K kv heads, D head_dim, C capacity; T, P and V as in session.h.
#pragma once

#include "onnxruntime.h"
#include "session.h"

namespace llama {

struct GraphCache;

class GraphSession : public Session {
public:
    GraphSession(const std::string& folder, const Manifest& manifest, const SessionOptions& options);

    std::unique_ptr<Cache> new_cache(size_t capacity) const override;
    void truncate(Cache& cache, size_t length) const override;
    void enlarge(Cache& cache, size_t capacity) const override;
    Outputs run_text(const Ids& tokens, const std::vector<std::string>& outputs) const override;

private:
    Logits run(const int32_t* tokens, size_t count, size_t kept, size_t rope_length, Cache& cache) const override;
    void bind(GraphCache& cache, size_t tokens, size_t kept) const;
    size_t buffer_bytes(size_t capacity) const;
    Owned<OrtValue> tensor(void* data, size_t bytes, const std::vector<int64_t>& dims, ONNXTensorElementDataType type) const;
    bool takes(const char* input) const;

    const OrtApi& api_;
    Owned<OrtEnv> env_;
    Owned<OrtSession> session_;
    Owned<OrtMemoryInfo> memory_;
    std::vector<std::string> past_, present_;
};

}  // namespace llama
