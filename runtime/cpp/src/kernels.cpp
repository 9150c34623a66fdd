#include "kernels.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

namespace llama {
namespace {

constexpr int k_version = 1;
const char* const k_level = "LLAMA_EXPORT_KERNELS";  // "off", or the level of instructions to use

std::string find_library() {
    const char* named = std::getenv("LLAMA_RUNTIME_KERNELS");
    if (named && *named) return named;
    std::error_code error;
    const auto folder = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
    for (const auto& place : {folder, folder.parent_path() / "lib"}) {
        const auto path = place / "libllama_kernels.so";
        if (!error && std::filesystem::exists(path, error)) return path.string();
    }
    return "";
}

}  // namespace

std::optional<std::string> find_kernels(const Manifest& manifest) {
    const char* set = std::getenv(k_level);
    const std::string wanted = set ? set : "";
    const bool blocks = manifest.precision == "int4" || manifest.precision == "int8";
    const bool half = manifest.cache && manifest.cache->dtype == "float16";
    if (wanted == "off" || half || !(blocks || manifest.attention == "flash")) return std::nullopt;
    const std::string path = find_library();
    if (path.empty()) {
        if (!wanted.empty()) say_no_kernels(std::string(k_level) + " is " + wanted + ", but no library of kernels is found");
        return std::nullopt;
    }
    // Never closed: ONNX Runtime uses it as long as the process lives.
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    const char* why = library ? nullptr : dlerror();
    const auto version = library ? reinterpret_cast<int (*)()>(dlsym(library, "llama_kernels_version")) : nullptr;
    const auto level = library ? reinterpret_cast<const char* (*)()>(dlsym(library, "llama_kernels_level")) : nullptr;
    if (!version || !level) {
        say_no_kernels(path + ": not a library of kernels for this machine" + (why ? std::string(" (") + why + ")" : ""));
    } else if (version() != k_version) {
        say_no_kernels(path + ": version " + std::to_string(version()) + " of the kernels, this runtime uses " +
                       std::to_string(k_version));
    } else if (level()) {
        return path;
    } else if (!wanted.empty()) {
        say_no_kernels(std::string(k_level) + " is " + wanted + ", which the kernels or this processor do not have; off is for none");
    }
    return std::nullopt;
}

void say_no_kernels(const std::string& what) {
    std::fprintf(stderr, "%s; ONNX Runtime's own operators are used\n", what.c_str());
}

}  // namespace llama
