// The options that FORMAT.md lists for a bundle's graph in ONNX Runtime.
#pragma once

#include <string>

#include "manifest.h"
#include "onnxruntime.h"

namespace llama {

// `threads` below 1: every core.
Owned<OrtSessionOptions> session_options(const OrtApi& api, const std::string& folder, const Manifest& manifest, int threads);

}  // namespace llama
