// Files as a bundle has them: read whole, with a limit, or checked for their size.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "llama_runtime.h"

namespace llama {

// The content of a file of at most `max_bytes`; throws `status`, and names the file.
std::vector<uint8_t> read_file(const std::string& path, size_t max_bytes, lr_status status);

// Size of a regular file; nothing where there is none.
std::optional<uint64_t> file_bytes(const std::string& path);

}  // namespace llama
