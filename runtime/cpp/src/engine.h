// What a session needs of an engine: memory for a cache, and runs of one of its profiles.
//
// TensorRT's (tensorrt_engine.cpp) is compiled where its headers are. One row.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine_file.h"
#include "session.h"

namespace llama {

// Keys and values of all layers, all slots, zeroed when made.
struct EngineMemory {
    virtual ~EngineMemory() = default;
};

struct Feed {
    std::string name;
    std::vector<int64_t> dims, values;
};

// A loaded engine; one run at a time.
class Engine {
public:
    virtual ~Engine() = default;
    // Throws std::bad_alloc where there is not enough.
    virtual std::unique_ptr<EngineMemory> allocate() = 0;
    // Every output but the caches, which are written in place; `memory` is null where the engine has none.
    virtual Outputs run(size_t profile, const std::vector<Feed>& feeds, EngineMemory* memory) = 0;
};

// Loads the plan of a bundle's engine on the first GPU, with TensorRT's library at `path`, or found where that is
// empty. Throws LR_ERROR_LIBRARY (this build has no TensorRT, or its library is missing) and LR_ERROR_SESSION.
std::unique_ptr<Engine> open_tensorrt(const std::string& folder, const EngineFile& file, const std::string& path);

}  // namespace llama
