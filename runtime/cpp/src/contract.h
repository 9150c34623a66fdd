// Is the graph that was loaded the one the manifest describes?
#pragma once

#include <string>
#include <vector>

#include "manifest.h"
#include "onnxruntime.h"

namespace llama {

// Names of the cache's inputs, or of its outputs: key and value of layer 0, of layer 1, ...
std::vector<std::string> cache_names(const CacheSpec& cache, bool present);

// Throws LR_ERROR_SESSION, naming the inputs or outputs that differ.
void check_contract(const OrtApi& api, const OrtSession* session, const Manifest& manifest, const std::string& path);

}  // namespace llama
