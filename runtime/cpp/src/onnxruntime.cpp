#include "onnxruntime.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <mutex>

#include "errors.h"

namespace llama {
namespace {

std::atomic<int> minor_version{0};

const OrtApi& api_of(const OrtApiBase* base, const std::string& where) {
    int minor = 0;
    const OrtApi* api = base ? base->GetApi(k_ort_api) : nullptr;
    if (!api) {
        const char* version = base ? base->GetVersionString() : nullptr;
        throw Error(LR_ERROR_LIBRARY, where + ": ONNX Runtime " + (version ? version : "of an unknown version") +
                                          " is too old, needs 1." + std::to_string(k_ort_api) + " or newer",
                    "install a newer onnxruntime");
    }
    std::sscanf(base->GetVersionString(), "1.%d", &minor);
    minor_version = minor;
    return *api;
}

#ifndef LLAMA_RUNTIME_LINK_ONNXRUNTIME

using GetApiBase = const OrtApiBase*(ORT_API_CALL*)();

const OrtApi& open_library(const std::string& path) {
    // Never closed: its threads and static objects live as long as the process.
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char* why = dlerror();
        throw Error(LR_ERROR_LIBRARY, path + ": cannot be loaded (" + (why ? why : "unknown") + ")",
                    "name the library of an onnxruntime package, libonnxruntime.so");
    }
    auto get = reinterpret_cast<GetApiBase>(dlsym(library, "OrtGetApiBase"));
    if (!get) throw Error(LR_ERROR_LIBRARY, path + ": is not ONNX Runtime's library, it has no OrtGetApiBase");
    return api_of(get(), path);
}

std::vector<std::string> places() {
    std::vector<std::string> found;
    std::error_code error;
    const auto executable = std::filesystem::read_symlink("/proc/self/exe", error);
    if (!error) {
        const auto folder = executable.parent_path();
        for (const auto& place : {folder, folder.parent_path() / "lib"}) {
            for (const char* name : {"libonnxruntime.so.1", "libonnxruntime.so"}) found.push_back((place / name).string());
        }
    }
    return found;
}

const OrtApi& find_library() {
    for (const std::string& path : places()) {
        std::error_code error;
        if (std::filesystem::exists(path, error)) return open_library(path);
    }
    for (const char* name : {"libonnxruntime.so.1", "libonnxruntime.so"}) {
        if (void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) {
            dlclose(library);
            return open_library(name);
        }
    }
    throw Error(LR_ERROR_LIBRARY, "ONNX Runtime's library is neither next to the executable nor among the system's",
                "set LLAMA_RUNTIME_ONNXRUNTIME to the path of libonnxruntime.so");
}

#endif

}  // namespace

int onnxruntime_minor() { return minor_version; }

const OrtApi& load_onnxruntime(const std::string& path) {
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
#ifdef LLAMA_RUNTIME_LINK_ONNXRUNTIME
    if (!path.empty()) {
        throw Error(LR_ERROR_LIBRARY, "a path of ONNX Runtime's library is given, this build is linked to one");
    }
    return api_of(OrtGetApiBase(), "the library this program is linked to");
#else
    if (!path.empty()) return open_library(path);
    const char* named = std::getenv("LLAMA_RUNTIME_ONNXRUNTIME");
    return named && *named ? open_library(named) : find_library();
#endif
}

void check(const OrtApi& api, OrtStatus* status, const std::string& what) {
    if (!status) return;
    std::string message = api.GetErrorMessage(status);
    api.ReleaseStatus(status);
    message = message.substr(0, message.find('\n'));
    throw Error(LR_ERROR_SESSION, what + ": " + message);
}

}  // namespace llama
