// One GPU and one stream, in which everything happens in order; CUDA's runtime is loaded when it is needed.
//
// Only tensorrt_engine.cpp includes this. Every call is checked: what CUDA reports becomes one sentence.
#pragma once

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "errors.h"

namespace llama {

// A library by the path that `variable` names, else the first of these that the system has. It stays loaded.
inline void* open_shared(const std::string& path, const char* variable, const std::vector<std::string>& names) {
    const char* set = std::getenv(variable);
    const std::string named = !path.empty() ? path : set ? set : "";
    for (const std::string& name : named.empty() ? names : std::vector<std::string>{named}) {
        if (void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    }
    const char* why = dlerror();
    throw Error(LR_ERROR_LIBRARY, std::string(named.empty() ? names.front() : named) + ": cannot be loaded (" + (why ? why : "unknown") + ")",
                std::string("set ") + variable + " to the library's path");
}

template <typename Function>
void find_symbol(void* library, const char* name, Function*& function) {
    function = reinterpret_cast<Function*>(dlsym(library, name));
    if (!function) throw Error(LR_ERROR_LIBRARY, std::string("the library has no ") + name, "install another version of it");
}

#define LLAMA_CUDA_FUNCTIONS(X)                                                                                     \
    X(cudaGetDeviceCount) X(cudaDeviceGetAttribute) X(cudaStreamCreate) X(cudaStreamDestroy) X(cudaMalloc)          \
    X(cudaFree) X(cudaMemsetAsync) X(cudaMemcpyAsync) X(cudaStreamSynchronize) X(cudaStreamBeginCapture)            \
    X(cudaStreamEndCapture) X(cudaGraphInstantiate) X(cudaGraphDestroy) X(cudaGraphLaunch) X(cudaGraphExecDestroy) \
    X(cudaGetErrorString)

class Cuda {
public:
    Cuda() {
        const std::string major = std::to_string(CUDART_VERSION / 1000);
        void* library = open_shared("", "LLAMA_RUNTIME_CUDART", {"libcudart.so." + major, "libcudart.so"});
#define LLAMA_FIND(name) find_symbol(library, #name, name##_);
        LLAMA_CUDA_FUNCTIONS(LLAMA_FIND)
#undef LLAMA_FIND
        int count = 0;
        if (cudaGetDeviceCount_(&count) != cudaSuccess || count == 0) {
            throw Error(LR_ERROR_SESSION, "no NVIDIA GPU with a driver is here, an engine needs one", "open the bundle on the CPU");
        }
        int major_of_gpu = 0, minor = 0;
        check(cudaDeviceGetAttribute_(&major_of_gpu, cudaDevAttrComputeCapabilityMajor, 0));
        check(cudaDeviceGetAttribute_(&minor, cudaDevAttrComputeCapabilityMinor, 0));
        capability = std::to_string(major_of_gpu) + "." + std::to_string(minor);
        check(cudaStreamCreate_(&stream));
    }
    ~Cuda() { cudaStreamDestroy_(stream); }
    Cuda(const Cuda&) = delete;

    // Zeroed.
    void* allocate(size_t bytes) {
        void* address = nullptr;
        const cudaError_t error = cudaMalloc_(&address, bytes ? bytes : 1);
        if (error == cudaErrorMemoryAllocation) throw std::bad_alloc();
        check(error);
        check(cudaMemsetAsync_(address, 0, bytes, stream));
        return address;
    }
    void free(void* address) { cudaFree_(address); }
    // Pageable memory, which is staged before the call returns.
    void upload(void* target, const void* source, size_t bytes) { check(cudaMemcpyAsync_(target, source, bytes, cudaMemcpyHostToDevice, stream)); }
    // After all work before it.
    void download(void* target, const void* source, size_t bytes) {
        check(cudaMemcpyAsync_(target, source, bytes, cudaMemcpyDeviceToHost, stream));
        synchronize();
    }
    void synchronize() { check(cudaStreamSynchronize_(stream)); }

    // What `work` enqueues, recorded instead of run.
    template <typename Work>
    cudaGraphExec_t record(Work work) {
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t executable = nullptr;
        synchronize();
        check(cudaStreamBeginCapture_(stream, cudaStreamCaptureModeThreadLocal));
        try {
            work();
        } catch (...) {
            cudaStreamEndCapture_(stream, &graph);
            throw;
        }
        check(cudaStreamEndCapture_(stream, &graph));
        const cudaError_t error = cudaGraphInstantiate_(&executable, graph, 0);
        cudaGraphDestroy_(graph);
        check(error);
        return executable;
    }
    void launch(cudaGraphExec_t executable) { check(cudaGraphLaunch_(executable, stream)); }
    void forget(cudaGraphExec_t executable) { cudaGraphExecDestroy_(executable); }

    std::string capability;  // of the GPU, "8.9"
    cudaStream_t stream = nullptr;

private:
    void check(cudaError_t error) const {
        if (error == cudaSuccess) return;
        throw Error(LR_ERROR_SESSION, std::string("CUDA reports: ") + cudaGetErrorString_(error), "nvidia-smi says whether the GPU works and what uses it");
    }

#define LLAMA_DECLARE(name) decltype(::name)* name##_ = nullptr;
    LLAMA_CUDA_FUNCTIONS(LLAMA_DECLARE)
#undef LLAMA_DECLARE
};

// A run of bytes on the GPU.
struct DeviceBuffer {
    DeviceBuffer(std::shared_ptr<Cuda> cuda, size_t bytes) : cuda(std::move(cuda)), address(this->cuda->allocate(bytes)), bytes(bytes) {}
    ~DeviceBuffer() { cuda->free(address); }
    DeviceBuffer(const DeviceBuffer&) = delete;

    std::shared_ptr<Cuda> cuda;
    void* address;
    size_t bytes;
};

}  // namespace llama
