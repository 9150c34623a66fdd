// trt/<name>.json: what an engine is, and where it may run.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "manifest.h"

namespace llama {

struct Plan {
    std::string path, sha256;
    uint64_t size_bytes;
};

struct EngineFile {
    std::string task, product, product_version, precision, dtype;  // no product where the graph alone was written
    std::vector<std::string> compute_capabilities, rebuild;
    int64_t max_seq, prefill_chunk;
    std::vector<int64_t> buckets;  // how many slots a run may read, rising; none without a cache
    size_t profiles;               // one of decoding for each bucket, then that of chunks; without a cache, one
    std::vector<TensorSpec> inputs, outputs;
    std::map<std::string, std::string> aliases;  // each cache output -> the input whose memory it shares
    std::optional<Plan> plan;
    bool version_compatible;

    bool is_cache(const std::string& input) const;
    // What a person types to have it made again.
    std::string rebuild_command(const std::string& folder) const;
};

// One of a bundle's engines; an empty name is the only one. Throws LR_ERROR_MANIFEST.
EngineFile read_engine_file(const std::string& folder, const std::string& name);
EngineFile parse_engine_file(const std::string& text, const std::string& where);

// A plan is code: any other bytes than those that were published are refused, LR_ERROR_MANIFEST.
std::vector<uint8_t> read_plan(const std::string& folder, const EngineFile& file);

// Refuses an engine of another product or version, or for other GPUs, with the command that makes one which runs.
void check_runs_here(const std::string& folder, const EngineFile& file, const std::string& product,
                     const std::string& version, const std::string& capability);

}  // namespace llama
