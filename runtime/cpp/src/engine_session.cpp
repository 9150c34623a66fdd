#include "engine_session.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "errors.h"

namespace llama {

// Gives its memory back to the pool, which outlives the session: a cache may be freed behind it.
struct EngineSession::EngineCache : Cache {
    EngineCache(std::shared_ptr<Pool> pool, std::unique_ptr<EngineMemory> memory) : pool(std::move(pool)), memory(std::move(memory)) {}
    ~EngineCache() override {
        const std::lock_guard<std::mutex> lock(pool->mutex);
        pool->idle.push_back(std::move(memory));
    }
    std::shared_ptr<Pool> pool;
    std::unique_ptr<EngineMemory> memory;
};

EngineSession::EngineSession(std::unique_ptr<Engine> engine, EngineFile file, const Manifest& manifest, size_t chunk_tokens)
    : Session(manifest, std::min(chunk_tokens, static_cast<size_t>(file.prefill_chunk))),
      file_(std::move(file)),
      engine_(std::move(engine)),
      pool_(std::make_shared<Pool>()) {}

std::unique_ptr<Cache> EngineSession::new_cache(size_t capacity) const {
    check_capacity(capacity);
    std::unique_ptr<EngineMemory> memory;
    {
        const std::lock_guard<std::mutex> lock(pool_->mutex);
        if (!pool_->idle.empty()) memory = std::move(pool_->idle.back()), pool_->idle.pop_back();
    }
    if (!memory) {
        const std::lock_guard<std::mutex> lock(one_run_);
        memory = engine_->allocate();
    }
    auto cache = std::make_unique<EngineCache>(pool_, std::move(memory));
    cache->capacity = capacity;
    return cache;
}

void EngineSession::truncate(Cache& cache, size_t length) const { cache.length = length; }

// It has all slots already.
void EngineSession::enlarge(Cache& cache, size_t capacity) const {
    check_capacity(capacity);
    cache.capacity = capacity;
}

Logits EngineSession::run(const int32_t* tokens, size_t count, size_t, size_t rope_length, Cache& cache) const {
    const auto past = static_cast<int64_t>(cache.length), T = static_cast<int64_t>(count);
    // The engine itself ignores a write behind the last slot without a word.
    if (past + T > file_.max_seq) {
        throw Error(LR_ERROR_PROMPT, std::to_string(T) + " tokens from slot " + std::to_string(past) + " on, the engine has " + std::to_string(file_.max_seq));
    }
    const auto bucket = std::lower_bound(file_.buckets.begin(), file_.buckets.end(), past + T);
    Feed ids{"input_ids", {1, T}, std::vector<int64_t>(tokens, tokens + count)}, positions{"position_ids", {1, T}, std::vector<int64_t>(count)};
    std::iota(positions.values.begin(), positions.values.end(), past);
    std::vector<Feed> feeds{std::move(ids), std::move(positions), {"write_indices", {1}, {past}}, {"kv_bucket", {1}, {*bucket}}};
    if (manifest_.rope_depends_on_length) feeds.push_back({"rope_length", {1}, {static_cast<int64_t>(rope_length)}});
    const size_t profile = count == 1 ? static_cast<size_t>(bucket - file_.buckets.begin()) : file_.buckets.size();
    const std::lock_guard<std::mutex> lock(one_run_);
    Outputs found = engine_->run(profile, feeds, static_cast<EngineCache&>(cache).memory.get());
    Logits logits = std::move(found["logits"].values);
    if (logits.size() != static_cast<size_t>(manifest_.vocab_size)) throw Error(LR_ERROR_SESSION, "the engine gives no logits of the vocabulary's size");
    cache.length += count;
    return logits;
}

Outputs EngineSession::run_text(const Ids& tokens, const std::vector<std::string>& outputs) const {
    if (!file_.buckets.empty()) throw Error(LR_ERROR_SESSION, "the engine generates texts, and gives nothing else", "open the bundle on the CPU");
    const auto T = static_cast<int64_t>(tokens.size());
    if (T > file_.max_seq) {
        throw Error(LR_ERROR_PROMPT, "a text of " + std::to_string(T) + " tokens, the engine takes " + std::to_string(file_.max_seq),
                    "build it with a larger --max-seq");
    }
    const std::lock_guard<std::mutex> lock(one_run_);
    Outputs found = engine_->run(0, {{"input_ids", {1, T}, {tokens.begin(), tokens.end()}}, {"attention_mask", {1, T}, std::vector<int64_t>(tokens.size(), 1)}}, nullptr);
    for (const std::string& name : outputs) {
        if (!found.count(name)) throw Error(LR_ERROR_SESSION, "the engine has no output " + name);
    }
    return found;
}

double EngineSession::rounding() const {
    static const std::map<std::string, double> shares{{"fp32", 1e-4}, {"fp16", 1e-2}, {"bf16", 8e-2}, {"int8", 8e-2}, {"fp8", 0.15}, {"int4", 0.3}};
    const auto found = shares.find(file_.precision);
    return found == shares.end() ? 0 : found->second;
}

#ifdef LLAMA_RUNTIME_TENSORRT
std::unique_ptr<Session> open_engine_session(const std::string& folder, Manifest& manifest, const SessionOptions& options) {
    EngineFile file = read_engine_file(folder, options.engine);
    if (file.task != manifest.task) {
        throw Error(LR_ERROR_MANIFEST, folder + ": the engine's task is " + file.task + ", the bundle's " + manifest.task, file.rebuild_command(folder));
    }
    if (!file.plan) read_plan(folder, file);  // refuses, with the command that builds it
    auto engine = open_tensorrt(folder, file, options.tensorrt);
    manifest.max_positions = std::min(manifest.max_positions, file.max_seq);
    return std::make_unique<EngineSession>(std::move(engine), std::move(file), manifest, options.chunk_tokens);
}
#else
std::unique_ptr<Session> open_engine_session(const std::string&, Manifest&, const SessionOptions&) {
    throw Error(LR_ERROR_LIBRARY, "this build of the library has no TensorRT",
                "build it where NvInfer.h and cuda_runtime_api.h are found: -DTENSORRT_HOME=FOLDER");
}
#endif

}  // namespace llama
