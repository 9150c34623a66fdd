// TensorRT and CUDA, played on the CPU behind the calls that src/tensorrt_engine.cpp makes of them.
//
// "Device memory" is host memory, and a context runs the engine's graph in ONNX Runtime on the very addresses
// that it was told. It refuses what TensorRT refuses: shapes outside of the profile, inputs without a shape or an
// address; and it ends the process where a copy leaves its buffer. A plan is the path of the ONNX file, whose
// sidecar beside it says what the profiles take.
//
// What it did is counted (played_count), and PLAYED_GPU ("8.9", "none"), PLAYED_MIB (how much there is) and
// PLAYED_ALIAS ("wrong") play other machines and plans.

#include <NvInfer.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "onnxruntime.h"

namespace {

using nlohmann::json;
using Work = std::vector<std::function<void()>>;

std::map<std::string, int> g_counts;
std::map<char*, std::vector<char>> g_buffers;
Work* g_recording = nullptr;

void insist(bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "played: %s\n", what);
    std::abort();
}

std::string setting(const char* name, const char* otherwise) {
    const char* set = std::getenv(name);
    return set ? set : otherwise;
}

void in_bounds(const void* address, size_t count) {
    const char* from = static_cast<const char*>(address);
    for (const auto& [start, buffer] : g_buffers) {
        if (start <= from && from + count <= start + buffer.size()) return;
    }
    insist(false, "a copy leaves its buffer");
}

struct Tensor {
    ONNXTensorElementDataType type;
    std::vector<int64_t> dims;  // -1 is open
    bool is_input;
};

class Context;

class Plan : public nvinfer1::ICudaEngine {
public:
    explicit Plan(const std::string& path) : api_(llama::load_onnxruntime("")) {
        std::ifstream file(path.substr(0, path.rfind('.')) + ".json");
        sidecar = json::parse(file);
        OrtSessionOptions* options = nullptr;
        llama::check(api_, api_.CreateEnv(ORT_LOGGING_LEVEL_ERROR, "played", &env_), path);
        llama::check(api_, api_.CreateSessionOptions(&options), path);
        llama::check(api_, api_.SetIntraOpNumThreads(options, 1), path);
        llama::check(api_, api_.CreateSession(env_, path.c_str(), options, &session_), path);
        api_.ReleaseSessionOptions(options);
        llama::check(api_, api_.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory_), path);
        size_t inputs = 0, outputs = 0;
        llama::check(api_, api_.SessionGetInputCount(session_, &inputs), path);
        llama::check(api_, api_.SessionGetOutputCount(session_, &outputs), path);
        for (size_t i = 0; i < inputs; ++i) add(i, true, api_.SessionGetInputName, api_.SessionGetInputTypeInfo);
        for (size_t i = 0; i < outputs; ++i) add(i, false, api_.SessionGetOutputName, api_.SessionGetOutputTypeInfo);
    }
    ~Plan() noexcept override {
        api_.ReleaseMemoryInfo(memory_), api_.ReleaseSession(session_), api_.ReleaseEnv(env_);
    }

    int32_t getNbIOTensors() const noexcept override { return static_cast<int32_t>(names.size()); }
    char const* getIOTensorName(int32_t index) const noexcept override { return names[static_cast<size_t>(index)].c_str(); }
    char const* getAliasedInputTensor(char const* name) const noexcept override {
        const auto found = sidecar["aliases"].find(name);
        if (found == sidecar["aliases"].end() || setting("PLAYED_ALIAS", "") == "wrong") return nullptr;
        return found->get_ref<const std::string&>().c_str();
    }
    int32_t getNbOptimizationProfiles() const noexcept override { return static_cast<int32_t>(sidecar["profiles"].size()); }
    int64_t getDeviceMemorySizeForProfileV2(int32_t index) const noexcept override { return 1024 * (index + 1); }
    nvinfer1::IExecutionContext* createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy strategy) noexcept override;
    nvinfer1::IExecutionContext* createExecutionContext(nvinfer1::IRuntimeConfig* config) noexcept override;
    nvinfer1::IRuntimeConfig* createRuntimeConfig() noexcept override;

    // Runs the graph on what a context was told; `bucket` is as it was when the run was enqueued.
    void play(std::map<std::string, std::vector<int64_t>> shapes, std::map<std::string, void*> addresses, int64_t bucket) const {
        OrtIoBinding* binding = nullptr;
        llama::check(api_, api_.CreateIoBinding(session_, &binding), "played");
        std::vector<llama::Owned<OrtValue>> values;
        const int64_t tokens = shapes["input_ids"].back();
        for (const auto& [name, tensor] : tensors) {
            std::vector<int64_t> dims = tensor.is_input ? shapes[name] : tensor.dims;
            int64_t open[] = {1, tokens}, *next = open;
            for (int64_t& dim : dims) dim = dim < 0 ? *next++ : dim;
            void* address = name == "kv_bucket" ? &bucket : addresses[name];
            size_t bytes = tensor.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 ? 8 : tensor.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ? 2 : 4;
            for (const int64_t dim : dims) bytes *= static_cast<size_t>(dim);
            if (name != "kv_bucket") in_bounds(address, bytes);
            OrtValue* value = nullptr;
            llama::check(api_, api_.CreateTensorWithDataAsOrtValue(memory_, address, bytes, dims.data(), dims.size(), tensor.type, &value), "played");
            values.push_back(llama::owned(value, api_.ReleaseValue));
            llama::check(api_, tensor.is_input ? api_.BindInput(binding, name.c_str(), value) : api_.BindOutput(binding, name.c_str(), value), "played");
        }
        llama::check(api_, api_.RunWithBinding(session_, nullptr, binding), "played");
        api_.ReleaseIoBinding(binding);
    }

    json sidecar;
    std::vector<std::string> names;
    std::map<std::string, Tensor> tensors;

private:
    using NameGetter = OrtStatus*(ORT_API_CALL*)(const OrtSession*, size_t, OrtAllocator*, char**);
    using TypeGetter = OrtStatus*(ORT_API_CALL*)(const OrtSession*, size_t, OrtTypeInfo**);

    void add(size_t index, bool is_input, NameGetter get_name, TypeGetter get_type) {
        OrtAllocator* allocator = nullptr;
        char* name = nullptr;
        OrtTypeInfo* type = nullptr;
        const OrtTensorTypeAndShapeInfo* info = nullptr;
        llama::check(api_, api_.GetAllocatorWithDefaultOptions(&allocator), "played");
        llama::check(api_, get_name(session_, index, allocator, &name), "played");
        llama::check(api_, get_type(session_, index, &type), "played");
        llama::check(api_, api_.CastTypeInfoToTensorInfo(type, &info), "played");
        size_t rank = 0;
        Tensor tensor{ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, {}, is_input};
        llama::check(api_, api_.GetTensorElementType(info, &tensor.type), "played");
        llama::check(api_, api_.GetDimensionsCount(info, &rank), "played");
        tensor.dims.resize(rank);
        llama::check(api_, api_.GetDimensions(info, tensor.dims.data(), rank), "played");
        names.emplace_back(name), tensors[name] = tensor;
        api_.ReleaseTypeInfo(type), allocator->Free(allocator, name);
    }

    const OrtApi& api_;
    OrtEnv* env_ = nullptr;
    OrtSession* session_ = nullptr;
    OrtMemoryInfo* memory_ = nullptr;
};

class Context : public nvinfer1::IExecutionContext {
public:
    explicit Context(const Plan& plan) : plan_(plan) {}

    bool setOptimizationProfileAsync(int32_t index, cudaStream_t) noexcept override {
        profile_ = plan_.sidecar["profiles"][static_cast<size_t>(index)];
        return true;
    }
    void setDeviceMemoryV2(void* memory, int64_t size) noexcept override {
        in_bounds(memory, static_cast<size_t>(size));
        has_memory_ = true;
    }
    bool setInputShape(char const* name, nvinfer1::Dims const& dims) noexcept override {
        const auto found = plan_.tensors.find(name);
        if (found == plan_.tensors.end() || !found->second.is_input) return false;
        const std::vector<int64_t>& wanted = found->second.dims;
        if (wanted.size() != static_cast<size_t>(dims.nbDims)) return false;
        const char* open[] = {"rows", "tokens"};
        size_t next = 0;
        for (size_t i = 0; i < wanted.size(); ++i) {
            const json bounds = wanted[i] < 0 ? profile_[open[next++]] : json({wanted[i], wanted[i], wanted[i]});
            if (dims.d[i] < bounds[0].get<int64_t>() || dims.d[i] > bounds[2].get<int64_t>()) return false;
        }
        shapes_[name].assign(dims.d, dims.d + dims.nbDims);
        return true;
    }
    bool setTensorAddress(char const* name, void* data) noexcept override {
        addresses_[name] = data;
        return true;
    }
    int32_t inferShapes(int32_t count, char const** missing) noexcept override {
        int32_t found = 0;
        for (const std::string& name : plan_.names) {
            const bool known = addresses_.count(name) && (!plan_.tensors.at(name).is_input || shapes_.count(name));
            if (!known && found++ < count) *missing = name.c_str();
        }
        return found;
    }
    bool enqueueV3(cudaStream_t) noexcept override {
        insist(has_memory_, "a context without scratch memory");
        int64_t bucket = 0;
        if (addresses_.count("kv_bucket")) {
            bucket = *static_cast<int64_t*>(addresses_["kv_bucket"]);
            if (bucket < profile_["buckets"][0].get<int64_t>() || bucket > profile_["buckets"][2].get<int64_t>()) return false;
        }
        const auto run = [&plan = plan_, shapes = shapes_, addresses = addresses_, bucket] { plan.play(shapes, addresses, bucket); };
        if (g_recording) return g_recording->push_back(run), true;
        run();
        ++g_counts["run"];
        return true;
    }
#ifdef PLAYED_TENSORRT_RTX
    bool isStreamCapturable(cudaStream_t) const noexcept override { return setting("PLAYED_CAPTURE", "") != "off"; }
#endif

private:
    const Plan& plan_;
    json profile_;
    bool has_memory_ = false;
    std::map<std::string, std::vector<int64_t>> shapes_;
    std::map<std::string, void*> addresses_;
};

struct Config : nvinfer1::IRuntimeConfig {
    void setExecutionContextAllocationStrategy(nvinfer1::ExecutionContextAllocationStrategy s) noexcept override { strategy = s; }
    void setDynamicShapesKernelSpecializationStrategy(nvinfer1::DynamicShapesKernelSpecializationStrategy s) noexcept override { kernels = s; }
    nvinfer1::ExecutionContextAllocationStrategy strategy{};
    nvinfer1::DynamicShapesKernelSpecializationStrategy kernels{};
};

nvinfer1::IExecutionContext* Plan::createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy strategy) noexcept {
    return strategy == nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED ? new Context(*this) : nullptr;
}
nvinfer1::IExecutionContext* Plan::createExecutionContext(nvinfer1::IRuntimeConfig* config) noexcept {
    const auto* given = static_cast<Config*>(config);
    const bool eager = given->kernels == nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER;
    return eager ? createExecutionContext(given->strategy) : nullptr;
}
nvinfer1::IRuntimeConfig* Plan::createRuntimeConfig() noexcept { return new Config; }

struct Runtime : nvinfer1::IRuntime {
    nvinfer1::ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
        const std::string path(static_cast<const char*>(blob), size);
        return path == "broken" ? nullptr : new Plan(path);
    }
};

template <typename Handle>
Work* work_of(Handle handle) {
    return reinterpret_cast<Work*>(handle);
}

}  // namespace

#define PLAYED extern "C" __attribute__((visibility("default")))

// How often: "run" (not replayed), "launch", "alloc"; "live" is how many buffers there are.
PLAYED int played_count(const char* what) { return std::strcmp(what, "live") == 0 ? static_cast<int>(g_buffers.size()) : g_counts[what]; }

PLAYED void* createInferRuntime_INTERNAL(void* logger, int32_t version) noexcept {
    return logger && version == NV_TENSORRT_VERSION ? new Runtime : nullptr;
}
PLAYED int32_t getInferLibMajorVersion() noexcept { return NV_TENSORRT_MAJOR; }
PLAYED int32_t getInferLibMinorVersion() noexcept { return 4; }
PLAYED int32_t getInferLibPatchVersion() noexcept { return 0; }
PLAYED int32_t getInferLibBuildVersion() noexcept { return 106; }

PLAYED cudaError_t cudaGetDeviceCount(int* count) { return *count = setting("PLAYED_GPU", "8.9") == "none" ? 0 : 1, cudaSuccess; }
PLAYED cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    const std::string capability = setting("PLAYED_GPU", "8.9");
    *value = std::atoi(capability.c_str() + (attribute == cudaDevAttrComputeCapabilityMajor ? 0 : capability.find('.') + 1));
    return cudaSuccess;
}
PLAYED cudaError_t cudaStreamCreate(cudaStream_t* stream) { return *stream = reinterpret_cast<cudaStream_t>(7), cudaSuccess; }
PLAYED cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
PLAYED cudaError_t cudaMalloc(void** address, size_t size) {
    size_t used = size;
    for (const auto& [start, buffer] : g_buffers) used += buffer.size();
    if (used > static_cast<size_t>(std::atoi(setting("PLAYED_MIB", "1024").c_str())) << 20) return cudaErrorMemoryAllocation;
    std::vector<char> buffer(size, 0x55);  // whoever reads what was never written sees it
    char* start = buffer.data();
    g_buffers[start] = std::move(buffer);
    ++g_counts["alloc"];
    return *address = start, cudaSuccess;
}
PLAYED cudaError_t cudaFree(void* address) {
    insist(g_buffers.erase(static_cast<char*>(address)) == 1, "what is freed was not allocated");
    return cudaSuccess;
}
PLAYED cudaError_t cudaMemsetAsync(void* address, int value, size_t count, cudaStream_t) {
    in_bounds(address, count);
    return std::memset(address, value, count), cudaSuccess;
}
PLAYED cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t count, cudaMemcpyKind kind, cudaStream_t) {
    insist(!g_recording, "a copy while recording");
    in_bounds(kind == cudaMemcpyDeviceToHost ? source : target, count);
    return std::memcpy(target, source, count), cudaSuccess;
}
PLAYED cudaError_t cudaStreamSynchronize(cudaStream_t) { return insist(!g_recording, "waiting while recording"), cudaSuccess; }
PLAYED cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) { return g_recording = new Work, cudaSuccess; }
PLAYED cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
    *graph = reinterpret_cast<cudaGraph_t>(g_recording), g_recording = nullptr;
    return cudaSuccess;
}
PLAYED cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
    return *executable = reinterpret_cast<cudaGraphExec_t>(new Work(*work_of(graph))), cudaSuccess;
}
PLAYED cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete work_of(graph), cudaSuccess; }
PLAYED cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t) {
    ++g_counts["launch"];
    for (const auto& run : *work_of(executable)) run();
    return cudaSuccess;
}
PLAYED cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return delete work_of(executable), cudaSuccess; }
PLAYED const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
