// An engine on a GPU: TensorRT's contexts, device memory and CUDA graphs behind engine.h.
//
// Compiled only where TensorRT's (or TensorRT-RTX's) and CUDA's headers are found; their libraries are loaded
// when an engine is opened. One context a profile, all in the same scratch memory, since all runs in one stream.

#include <NvInfer.h>

#include <algorithm>
#include <cstdio>

#include "cuda.h"
#include "engine.h"

namespace llama {
namespace {

#ifdef TRT_MAJOR_RTX
const char* const k_product = "tensorrt-rtx";
const std::string k_library = "libtensorrt_rtx.so";
#else
const char* const k_product = "tensorrt";
const std::string k_library = "libnvinfer.so";
#endif
const char* const k_host_input = "kv_bucket";

extern "C" {
using CreateRuntime = void*(void* logger, int32_t version);
using VersionPart = int32_t();
}

class Logger : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity <= Severity::kERROR) std::fprintf(stderr, "%s: %s\n", k_product, message);
    }
};

void must(bool ok, const std::string& name) {
    if (!ok) throw Error(LR_ERROR_SESSION, "TensorRT refuses shape or address of " + name);
}

nvinfer1::Dims dims_of(const std::vector<int64_t>& sizes) {
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<int32_t>(sizes.size());
    std::copy(sizes.begin(), sizes.end(), dims.d);
    return dims;
}

// An output's or cache's shape in a run of one row: its first open dim is the rows, its second the tokens.
std::vector<int64_t> filled(const TensorSpec& spec, int64_t tokens) {
    std::vector<int64_t> sizes, open{1, tokens};
    size_t next = 0;
    for (const std::string& dim : spec.shape) {
        const bool is_open = dim.find_first_not_of("0123456789") != dim.npos;
        if (is_open && next == open.size()) throw Error(LR_ERROR_SESSION, "the engine's " + spec.name + " has more than two open dimensions");
        sizes.push_back(is_open ? open[next++] : std::atoll(dim.c_str()));
    }
    return sizes;
}

size_t count_of(const std::vector<int64_t>& sizes) {
    size_t total = 1;
    for (const int64_t size : sizes) total *= static_cast<size_t>(size);
    return total;
}

struct DeviceMemory : EngineMemory {
    explicit DeviceMemory(std::shared_ptr<Cuda> cuda) : cuda(std::move(cuda)) {}
    ~DeviceMemory() override {
        for (const auto& [key, executable] : graphs) cuda->forget(executable);
    }
    std::shared_ptr<Cuda> cuda;
    std::vector<std::unique_ptr<DeviceBuffer>> buffers;           // in the order of the engine's cache inputs
    std::map<std::vector<uintptr_t>, cudaGraphExec_t> graphs;     // what was recorded over them, by what it was recorded for
};

class TensorRTEngine : public Engine {
public:
    TensorRTEngine(const std::string& folder, const EngineFile& file, const std::string& path) : file_(file) {
        void* library = open_shared(path, "LLAMA_RUNTIME_TENSORRT", {k_library + "." + std::to_string(NV_TENSORRT_MAJOR), k_library});
        std::string version;
        for (const char* part : {"getInferLibMajorVersion", "getInferLibMinorVersion", "getInferLibPatchVersion", "getInferLibBuildVersion"}) {
            VersionPart* get = nullptr;
            find_symbol(library, part, get);
            version += (version.empty() ? "" : ".") + std::to_string(get());
        }
        cuda_ = std::make_shared<Cuda>();
        check_runs_here(folder, file, k_product, version, cuda_->capability);
        const std::vector<uint8_t> plan = read_plan(folder, file);
        CreateRuntime* create = nullptr;
        find_symbol(library, "createInferRuntime_INTERNAL", create);
        runtime_.reset(static_cast<nvinfer1::IRuntime*>(create(&logger_, NV_TENSORRT_VERSION)));
        if (runtime_) engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
        if (!engine_) throw Error(LR_ERROR_SESSION, std::string(k_product) + " " + version + " cannot load the plan on this GPU", file.rebuild_command(folder));
        check_plan();
        make_contexts();
        for (const TensorSpec& spec : file_.inputs) {
            if (file_.is_cache(spec.name)) caches_.push_back(spec);
        }
        for (const TensorSpec& spec : file_.outputs) {
            if (file_.aliases.count(spec.name)) continue;
            if (spec.dtype != "float32") throw Error(LR_ERROR_SESSION, "the engine's " + spec.name + " is " + spec.dtype + ", needs float32");
            results_.push_back(spec);
        }
    }

    std::unique_ptr<EngineMemory> allocate() override {
        auto memory = std::make_unique<DeviceMemory>(cuda_);
        for (const TensorSpec& spec : caches_) memory->buffers.push_back(std::make_unique<DeviceBuffer>(cuda_, cache_bytes(spec)));
        return memory;
    }

    // A decode of a shape that ran before is replayed from its recording.
    Outputs run(size_t profile, const std::vector<Feed>& feeds, EngineMemory* given) override {
        auto* memory = static_cast<DeviceMemory*>(given);
        const int64_t T = feeds.front().dims.back();
        std::vector<uintptr_t> key{profile};
        for (const Feed& feed : feeds) {
            if (feed.name == k_host_input) {
                bucket_ = feed.values.front(), key.push_back(static_cast<uintptr_t>(bucket_));
                continue;
            }
            DeviceBuffer& buffer = buffer_of(feed.name, feed.values.size() * 8);
            cuda_->upload(buffer.address, feed.values.data(), feed.values.size() * 8);
            // A buffer that grew has moved: what was recorded with its old address is never launched again.
            key.push_back(reinterpret_cast<uintptr_t>(buffer.address));
        }
        Outputs found;
        for (const TensorSpec& spec : results_) {
            Output& output = found[spec.name];
            output.dims = filled(spec, T), output.values.resize(count_of(output.dims));
            key.push_back(reinterpret_cast<uintptr_t>(buffer_of(spec.name, output.values.size() * 4).address));
        }
        if (memory && memory->graphs.count(key)) {
            cuda_->launch(memory->graphs[key]);
        } else {
            nvinfer1::IExecutionContext& context = bind(profile, feeds, memory);
            execute(context);
            // Recorded behind a first run, in which kernels may still be loaded or compiled.
            if (memory && T == 1 && capturable(context)) memory->graphs[key] = cuda_->record([&] { execute(context); });
        }
        for (auto& [name, output] : found) cuda_->download(output.values.data(), buffers_[name]->address, output.values.size() * 4);
        return found;
    }

private:
    // The plan's interface and aliases must be those of the sidecar: what is bound depends on them.
    void check_plan() const {
        std::vector<std::string> names, wanted;
        for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) names.emplace_back(engine_->getIOTensorName(i));
        for (const auto* specs : {&file_.inputs, &file_.outputs}) {
            for (const TensorSpec& spec : *specs) wanted.push_back(spec.name);
        }
        std::sort(names.begin(), names.end()), std::sort(wanted.begin(), wanted.end());
        if (names != wanted) throw Error(LR_ERROR_SESSION, "the plan is not the one that its sidecar describes: its inputs and outputs differ");
        for (const auto& [output, input] : file_.aliases) {
            const char* found = engine_->getAliasedInputTensor(output.c_str());
            if (!found || input != found) {
                throw Error(LR_ERROR_SESSION, "the plan does not write " + output + " in place of " + input + ": its cache would be lost after every run");
            }
        }
        const auto profiles = static_cast<size_t>(engine_->getNbOptimizationProfiles());
        if (profiles != file_.profiles) {
            throw Error(LR_ERROR_SESSION, "the plan has " + std::to_string(profiles) + " profiles, its sidecar " + std::to_string(file_.profiles));
        }
    }

    void make_contexts() {
        int64_t bytes = 0;
        const int32_t profiles = engine_->getNbOptimizationProfiles();
        for (int32_t i = 0; i < profiles; ++i) bytes = std::max(bytes, engine_->getDeviceMemorySizeForProfileV2(i));
        scratch_ = std::make_unique<DeviceBuffer>(cuda_, static_cast<size_t>(bytes));
        for (int32_t i = 0; i < profiles; ++i) {
            std::unique_ptr<nvinfer1::IExecutionContext> context(new_context());
            if (!context || !context->setOptimizationProfileAsync(i, cuda_->stream)) {
                throw Error(LR_ERROR_SESSION, "TensorRT cannot make a context", "nvidia-smi says what uses the GPU");
            }
            context->setDeviceMemoryV2(scratch_->address, bytes);
            contexts_.push_back(std::move(context));
        }
        cuda_->synchronize();
    }

    nvinfer1::IExecutionContext* new_context() {
        const auto strategy = nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED;
#ifdef TRT_MAJOR_RTX
        // TensorRT-RTX compiles kernels when they are first needed; a recording must not hold makeshift ones.
        const std::unique_ptr<nvinfer1::IRuntimeConfig> config(engine_->createRuntimeConfig());
        if (!config) return nullptr;
        config->setExecutionContextAllocationStrategy(strategy);
        config->setDynamicShapesKernelSpecializationStrategy(nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
        return engine_->createExecutionContext(config.get());
#else
        return engine_->createExecutionContext(strategy);
#endif
    }

    bool capturable(nvinfer1::IExecutionContext& context) const {
#ifdef TRT_MAJOR_RTX
        return context.isStreamCapturable(cuda_->stream);
#else
        (void)context;
        return true;
#endif
    }

    // Tells a context every shape and address.
    nvinfer1::IExecutionContext& bind(size_t profile, const std::vector<Feed>& feeds, DeviceMemory* memory) {
        nvinfer1::IExecutionContext& context = *contexts_.at(profile);
        for (const Feed& feed : feeds) {
            void* address = feed.name == k_host_input ? &bucket_ : buffers_[feed.name]->address;
            must(context.setInputShape(feed.name.c_str(), dims_of(feed.dims)), feed.name);
            must(context.setTensorAddress(feed.name.c_str(), address), feed.name);
        }
        for (size_t i = 0; memory && i < caches_.size(); ++i) {
            const std::string& input = caches_[i].name;
            must(context.setInputShape(input.c_str(), dims_of(filled(caches_[i], 1))), input);
            must(context.setTensorAddress(input.c_str(), memory->buffers[i]->address), input);
            for (const auto& [output, source] : file_.aliases) {
                if (source == input) must(context.setTensorAddress(output.c_str(), memory->buffers[i]->address), output);
            }
        }
        for (const TensorSpec& spec : results_) must(context.setTensorAddress(spec.name.c_str(), buffers_[spec.name]->address), spec.name);
        const char* missing = nullptr;
        if (context.inferShapes(1, &missing) != 0) {
            throw Error(LR_ERROR_SESSION, std::string("TensorRT misses the shape or value of ") + (missing ? missing : "an input"));
        }
        return context;
    }

    void execute(nvinfer1::IExecutionContext& context) const {
        if (!context.enqueueV3(cuda_->stream)) throw Error(LR_ERROR_SESSION, "TensorRT cannot run the engine", "see its own message on stderr");
    }

    size_t cache_bytes(const TensorSpec& spec) const { return count_of(filled(spec, 1)) * (file_.dtype == "float32" ? 4 : 2); }

    // Of an input or output, made anew where it is too small.
    DeviceBuffer& buffer_of(const std::string& name, size_t bytes) {
        std::unique_ptr<DeviceBuffer>& found = buffers_[name];
        if (!found || found->bytes < bytes) {
            cuda_->synchronize();  // before the old one goes
            found.reset();
            found = std::make_unique<DeviceBuffer>(cuda_, bytes);
        }
        return *found;
    }

    const EngineFile file_;
    Logger logger_;
    std::shared_ptr<Cuda> cuda_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<DeviceBuffer> scratch_;
    std::vector<std::unique_ptr<nvinfer1::IExecutionContext>> contexts_;
    std::vector<TensorSpec> caches_, results_;
    std::map<std::string, std::unique_ptr<DeviceBuffer>> buffers_;
    int64_t bucket_ = 0;  // in host memory, where every context was told that it is
};

}  // namespace

std::unique_ptr<Engine> open_tensorrt(const std::string& folder, const EngineFile& file, const std::string& path) {
    return std::make_unique<TensorRTEngine>(folder, file, path);
}

}  // namespace llama
