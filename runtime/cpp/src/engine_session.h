// A session over an engine: which profile and bucket a run takes, and what it is fed.
//
// It knows an engine by engine.h alone.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "engine.h"

namespace llama {

class EngineSession : public Session {
public:
    EngineSession(std::unique_ptr<Engine> engine, EngineFile file, const Manifest& manifest, size_t chunk_tokens);

    std::unique_ptr<Cache> new_cache(size_t capacity) const override;
    void truncate(Cache& cache, size_t length) const override;
    void enlarge(Cache& cache, size_t capacity) const override;
    double rounding() const override;
    bool gives_all_logits() const override { return false; }
    Outputs run_text(const Ids& tokens, const std::vector<std::string>& outputs) const override;

private:
    Logits run(const int32_t* tokens, size_t count, size_t kept, size_t rope_length, Cache& cache) const override;

    const EngineFile file_;
    // Memory that no cache holds any more serves the next one, so that what was recorded for it stays good.
    struct Pool {
        std::mutex mutex;
        std::vector<std::unique_ptr<EngineMemory>> idle;
    };
    struct EngineCache;
    mutable std::mutex one_run_;
    std::unique_ptr<Engine> engine_;
    std::shared_ptr<Pool> pool_;
};

// Lowers the manifest's limits to the engine's.
std::unique_ptr<Session> open_engine_session(const std::string& folder, Manifest& manifest, const SessionOptions& options);

}  // namespace llama
