#include "files.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "errors.h"

namespace llama {

std::optional<uint64_t> file_bytes(const std::string& path) {
    std::error_code error;
    if (!std::filesystem::is_regular_file(path, error)) return std::nullopt;
    const uint64_t bytes = std::filesystem::file_size(path, error);
    if (error) return std::nullopt;
    return bytes;
}

std::vector<uint8_t> read_file(const std::string& path, size_t max_bytes, lr_status status) {
    const auto bytes = file_bytes(path);
    errno = 0;
    std::ifstream file(path, std::ios::binary);
    if (!bytes || !file) {
        const char* why = errno ? std::strerror(errno) : "not a file";
        throw Error(status, path + ": cannot be read (" + why + ")", k_copy_again);
    }
    if (*bytes > max_bytes) {
        throw Error(status, path + ": " + std::to_string(*bytes) + " bytes, at most " + std::to_string(max_bytes) +
                                " are allowed");
    }
    std::vector<uint8_t> content(*bytes);
    if (!file.read(reinterpret_cast<char*>(content.data()), static_cast<std::streamsize>(content.size()))) {
        throw Error(status, path + ": cannot be read to its end", k_copy_again);
    }
    return content;
}

}  // namespace llama
