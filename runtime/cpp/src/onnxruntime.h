// ONNX Runtime's C API: found when the first bundle is opened, or linked; its objects, each freed once.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <onnxruntime_c_api.h>

namespace llama {

// The lowest version of the API that has all we call: the library may be any that is newer.
constexpr uint32_t k_ort_api = 18;

// The library's functions. Loaded from `path`; empty: from LLAMA_RUNTIME_ONNXRUNTIME, from the executable's
// folder or ../lib beside it, else the system's. Throws LR_ERROR_LIBRARY. It stays loaded.
const OrtApi& load_onnxruntime(const std::string& path);

// The x of its version 1.x.
int onnxruntime_minor();

// Throws LR_ERROR_SESSION, with `what` in front, where a call failed; of ONNX Runtime's message the first line.
void check(const OrtApi& api, OrtStatus* status, const std::string& what);

template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

template <typename T>
Owned<T> owned(T* object, void (*release)(T*)) {
    return Owned<T>(object, release);
}
template <typename T>
Owned<T> nothing() {
    return Owned<T>(nullptr, [](T*) {});
}

}  // namespace llama
