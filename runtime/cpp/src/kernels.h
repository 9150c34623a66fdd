// Our own operators for ONNX Runtime (runtime/kernels), where their library is found and runs here.
#pragma once

#include <optional>
#include <string>

#include "manifest.h"

namespace llama {

// Path of the library, for bundles whose graph imports com.microsoft: LLAMA_RUNTIME_KERNELS, or libllama_kernels.so in the executable's
// folder or ../lib beside it. None where there is none, it is not faster on this processor, LLAMA_EXPORT_KERNELS
// is "off", or, with a line on stderr, where it is not right.
std::optional<std::string> find_kernels(const Manifest& manifest);

// One line on stderr, and what follows from it.
void say_no_kernels(const std::string& what);

}  // namespace llama
