#include "graph_session.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>

#include "contract.h"
#include "errors.h"
#include "graph_options.h"
#include "kernels.h"

namespace llama {
namespace {

const char* const k_cannot_run = "ONNX Runtime cannot run the graph";

// Bindings for runs of one shape over one cache; between two decodes only the mask's length changes.
struct Step {
    size_t tokens = 0, kept = 0;  // how many are new, and from the last of how many logits are wanted
    Owned<OrtIoBinding> binding = nothing<OrtIoBinding>();
    std::vector<int64_t> ids, positions;
    std::vector<float> logits;
    std::vector<Owned<OrtValue>> fixed;  // what stays bound
};

// Zeroed memory that is touched as it fills, not when it is made.
struct Buffer {
    explicit Buffer(size_t bytes) : data(std::calloc(bytes, 1), std::free), bytes(bytes) {
        if (!data) throw std::bad_alloc();
    }
    std::unique_ptr<void, void (*)(void*)> data;
    size_t bytes;
};

ONNXTensorElementDataType cache_type(const CacheSpec& cache) {
    if (cache.dtype == "int8") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
    return cache.dtype == "float16" ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

// Of one position of one head.
size_t row_bytes(const CacheSpec& cache) {
    return static_cast<size_t>(cache.head_dim) * (cache.dtype == "int8" ? 1 : cache.dtype == "float16" ? 2 : 4);
}

// Copies the first positions of every head, from rows that are `from` positions apart to such that are `to` apart.
void copy_positions(const void* source, size_t from, void* target, size_t to, size_t count, const CacheSpec& spec) {
    const size_t row = row_bytes(spec);
    for (size_t head = 0; count && head < static_cast<size_t>(spec.kv_heads); ++head) {
        std::memcpy(static_cast<char*>(target) + head * to * row, static_cast<const char*>(source) + head * from * row, count * row);
    }
}

}  // namespace

struct GraphCache : Cache {
    std::vector<Buffer> buffers;         // in place: key and value of each layer, [1, K, C, D]
    std::vector<Owned<OrtValue>> values;  // growing: [1, K, P, D]
    std::vector<int64_t> ones;           // any mask [1, S] of ones is a prefix of it
    int64_t keep = 0, rope_length = 0;
    Step step;
};

GraphSession::GraphSession(const std::string& folder, const Manifest& manifest, const SessionOptions& given)
    : Session(manifest, given.chunk_tokens),
      api_(load_onnxruntime(given.onnxruntime)),
      env_(nothing<OrtEnv>()),
      session_(nothing<OrtSession>()),
      memory_(nothing<OrtMemoryInfo>()) {
    if (manifest.cache) past_ = cache_names(*manifest.cache, false), present_ = cache_names(*manifest.cache, true);
    const std::string path = folder + "/" + manifest.model_path;
    OrtEnv* env = nullptr;
    check(api_, api_.CreateEnv(ORT_LOGGING_LEVEL_ERROR, "llama_runtime", &env), path);
    env_ = owned(env, api_.ReleaseEnv);
    const auto load = [&](const OrtSessionOptions* options) {
        OrtSession* session = nullptr;
        check(api_, api_.CreateSession(env, path.c_str(), options, &session), path + ": ONNX Runtime cannot load it");
        session_ = owned(session, api_.ReleaseSession);
    };
    if (const auto kernels = find_kernels(manifest)) {
        const auto options = session_options(api_, folder, manifest, given.threads);
        try {
            check(api_, api_.RegisterCustomOpsLibrary_V2(options.get(), kernels->c_str()), *kernels);
            load(options.get());
        } catch (const Error& error) {
            say_no_kernels(error.what());
        }
    }
    if (!session_) load(session_options(api_, folder, manifest, given.threads).get());
    OrtMemoryInfo* memory = nullptr;
    check(api_, api_.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory), path);
    memory_ = owned(memory, api_.ReleaseMemoryInfo);
    check_contract(api_, session_.get(), manifest, path);
}

bool GraphSession::takes(const char* input) const {
    for (const auto* specs : {&manifest_.inputs, &manifest_.optional_inputs}) {
        for (const TensorSpec& spec : *specs) {
            if (spec.name == input) return true;
        }
    }
    return false;
}

Owned<OrtValue> GraphSession::tensor(void* data, size_t bytes, const std::vector<int64_t>& dims, ONNXTensorElementDataType type) const {
    OrtValue* value = nullptr;
    static char nowhere;  // an empty tensor needs an address too
    check(api_, api_.CreateTensorWithDataAsOrtValue(memory_.get(), data ? data : &nowhere, bytes, dims.data(), dims.size(), type, &value),
          k_cannot_run);
    return owned(value, api_.ReleaseValue);
}

size_t GraphSession::buffer_bytes(size_t capacity) const {
    check_capacity(capacity);
    const CacheSpec& spec = *manifest_.cache;
    const size_t row = row_bytes(spec), heads = static_cast<size_t>(spec.kv_heads);
    // Products of a hostile manifest's numbers.
    if (capacity > std::numeric_limits<ptrdiff_t>::max() / row / heads) throw std::bad_alloc();
    return capacity * row * heads;
}

std::unique_ptr<Cache> GraphSession::new_cache(size_t capacity) const {
    const size_t bytes = buffer_bytes(capacity);
    const CacheSpec& spec = *manifest_.cache;
    auto cache = std::make_unique<GraphCache>();
    cache->capacity = capacity;
    cache->ones.assign(capacity, 1);
    for (size_t i = 0; i < past_.size(); ++i) {
        if (spec.in_place) {
            cache->buffers.emplace_back(bytes);
        } else {
            cache->values.push_back(tensor(nullptr, 0, {1, spec.kv_heads, 0, spec.head_dim}, cache_type(spec)));
        }
    }
    return cache;
}

void GraphSession::enlarge(Cache& given, size_t capacity) const {
    auto& cache = static_cast<GraphCache&>(given);
    const size_t bytes = buffer_bytes(capacity);
    const CacheSpec& spec = *manifest_.cache;
    std::vector<Buffer> larger;
    for (const Buffer& old : cache.buffers) {
        larger.emplace_back(bytes);
        copy_positions(old.data.get(), cache.capacity, larger.back().data.get(), capacity, cache.length, spec);
    }
    cache.step = Step();
    cache.ones.assign(capacity, 1);
    cache.buffers = std::move(larger);
    cache.capacity = capacity;
}

// Makes the step for runs of `tokens` new ones, `kept` of which get logits, unless it is there already.
void GraphSession::bind(GraphCache& cache, size_t tokens, size_t kept) const {
    Step& step = cache.step;
    if (step.binding && step.tokens == tokens && step.kept == kept) return;
    step = Step();
    OrtIoBinding* binding = nullptr;
    check(api_, api_.CreateIoBinding(session_.get(), &binding), k_cannot_run);
    step.binding = owned(binding, api_.ReleaseIoBinding);
    step.ids.resize(tokens), step.positions.resize(tokens);
    const bool keeps = takes("num_logits_to_keep");
    const auto given = static_cast<int64_t>(keeps ? kept : tokens), T = static_cast<int64_t>(tokens);
    cache.keep = given;
    step.logits.resize(static_cast<size_t>(given * manifest_.vocab_size));
    const auto input = [&](const char* name, std::vector<int64_t>& data, const std::vector<int64_t>& dims) {
        step.fixed.push_back(tensor(data.data(), data.size() * 8, dims, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64));
        check(api_, api_.BindInput(binding, name, step.fixed.back().get()), k_cannot_run);
    };
    const auto scalar = [&](const char* name, int64_t& data) {
        step.fixed.push_back(tensor(&data, 8, {1}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64));
        check(api_, api_.BindInput(binding, name, step.fixed.back().get()), k_cannot_run);
    };
    // Outputs are returned in the order they are bound: the logits, then the cache.
    step.fixed.push_back(tensor(step.logits.data(), step.logits.size() * 4, {1, given, manifest_.vocab_size}, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT));
    check(api_, api_.BindOutput(binding, "logits", step.fixed.back().get()), k_cannot_run);
    input("input_ids", step.ids, {1, T});
    if (takes("position_ids")) input("position_ids", step.positions, {1, T});
    if (keeps) scalar("num_logits_to_keep", cache.keep);
    if (takes("rope_length")) scalar("rope_length", cache.rope_length);
    const CacheSpec& spec = *manifest_.cache;
    for (size_t i = 0; i < cache.buffers.size(); ++i) {
        Buffer& buffer = cache.buffers[i];
        const std::vector<int64_t> dims{1, spec.kv_heads, static_cast<int64_t>(cache.capacity), spec.head_dim};
        step.fixed.push_back(tensor(buffer.data.get(), buffer.bytes, dims, cache_type(spec)));
        check(api_, api_.BindInput(binding, past_[i].c_str(), step.fixed.back().get()), k_cannot_run);
        check(api_, api_.BindOutput(binding, present_[i].c_str(), step.fixed.back().get()), k_cannot_run);
    }
    step.tokens = tokens, step.kept = kept;  // the last thing: a step that failed half-way is made anew
}

Logits GraphSession::run(const int32_t* tokens, size_t count, size_t kept, size_t rope_length, Cache& given) const {
    auto& cache = static_cast<GraphCache&>(given);
    bind(cache, count, kept);
    cache.rope_length = static_cast<int64_t>(rope_length);
    Step& step = cache.step;
    OrtIoBinding* binding = step.binding.get();
    std::copy(tokens, tokens + count, step.ids.begin());
    std::iota(step.positions.begin(), step.positions.end(), static_cast<int64_t>(cache.length));
    const size_t S = cache.length + count;
    const auto mask = tensor(cache.ones.data(), S * 8, {1, static_cast<int64_t>(S)}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
    check(api_, api_.BindInput(binding, "attention_mask", mask.get()), k_cannot_run);
    for (size_t i = 0; i < cache.values.size(); ++i) {
        check(api_, api_.BindInput(binding, past_[i].c_str(), cache.values[i].get()), k_cannot_run);
        // An output that stays bound would be taken for a buffer of the right size.
        check(api_, api_.BindOutputToDevice(binding, present_[i].c_str(), memory_.get()), k_cannot_run);
    }
    check(api_, api_.RunWithBinding(session_.get(), nullptr, binding), k_cannot_run);
    if (!cache.values.empty()) {
        OrtAllocator* allocator = nullptr;
        check(api_, api_.GetAllocatorWithDefaultOptions(&allocator), k_cannot_run);
        OrtValue** outputs = nullptr;
        size_t found = 0;
        check(api_, api_.GetBoundOutputValues(binding, allocator, &outputs, &found), k_cannot_run);
        std::vector<Owned<OrtValue>> values;
        for (size_t i = 0; i < found; ++i) values.push_back(owned(outputs[i], api_.ReleaseValue));
        allocator->Free(allocator, outputs);
        values.erase(values.begin());
        cache.values = std::move(values);
    }
    cache.length = S;
    return Logits(step.logits.end() - static_cast<std::ptrdiff_t>(kept) * manifest_.vocab_size, step.logits.end());
}

void GraphSession::truncate(Cache& given, size_t length) const {
    auto& cache = static_cast<GraphCache&>(given);
    std::vector<Owned<OrtValue>> shortened;
    for (const Owned<OrtValue>& value : cache.values) {
        if (cache.length == length) break;
        const CacheSpec& spec = *manifest_.cache;
        void* from = nullptr;
        void* to = nullptr;
        OrtAllocator* allocator = nullptr;
        OrtValue* made = nullptr;
        const int64_t dims[] = {1, spec.kv_heads, static_cast<int64_t>(length), spec.head_dim};
        check(api_, api_.GetAllocatorWithDefaultOptions(&allocator), k_cannot_run);
        check(api_, api_.CreateTensorAsOrtValue(allocator, dims, 4, cache_type(spec), &made), k_cannot_run);
        shortened.push_back(owned(made, api_.ReleaseValue));
        check(api_, api_.GetTensorMutableData(value.get(), &from), k_cannot_run);
        check(api_, api_.GetTensorMutableData(made, &to), k_cannot_run);
        copy_positions(from, cache.length, to, length, length, spec);
    }
    if (!shortened.empty()) cache.values = std::move(shortened);
    cache.length = length;
}

Outputs GraphSession::run_text(const Ids& tokens, const std::vector<std::string>& outputs) const {
    const auto T = static_cast<int64_t>(tokens.size());
    std::vector<int64_t> ids(tokens.begin(), tokens.end()), mask(tokens.size(), 1), positions(tokens.size());
    std::iota(positions.begin(), positions.end(), 0);
    int64_t keep = 1;
    std::vector<Owned<OrtValue>> values;
    std::vector<const char*> input_names, output_names;
    const auto feed = [&](const char* name, void* data, size_t bytes, const std::vector<int64_t>& dims, ONNXTensorElementDataType type) {
        if (!takes(name)) return;
        values.push_back(tensor(data, bytes, dims, type));
        input_names.push_back(name);
    };
    const auto int64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    feed("input_ids", ids.data(), ids.size() * 8, {1, T}, int64);
    feed("attention_mask", mask.data(), mask.size() * 8, {1, T}, int64);
    feed("position_ids", positions.data(), positions.size() * 8, {1, T}, int64);
    feed("num_logits_to_keep", &keep, 8, {1}, int64);
    for (const std::string& name : past_) {
        const CacheSpec& spec = *manifest_.cache;
        feed(name.c_str(), nullptr, 0, {1, spec.kv_heads, 0, spec.head_dim}, cache_type(spec));
    }
    for (const std::string& name : outputs) output_names.push_back(name.c_str());
    std::vector<const OrtValue*> inputs;
    for (const auto& value : values) inputs.push_back(value.get());
    std::vector<OrtValue*> results(outputs.size(), nullptr);
    check(api_, api_.Run(session_.get(), nullptr, input_names.data(), inputs.data(), inputs.size(), output_names.data(), outputs.size(), results.data()),
          k_cannot_run);
    std::vector<Owned<OrtValue>> keeps;
    for (OrtValue* result : results) keeps.push_back(owned(result, api_.ReleaseValue));
    Outputs found;
    for (size_t i = 0; i < outputs.size(); ++i) {
        OrtTensorTypeAndShapeInfo* made = nullptr;
        check(api_, api_.GetTensorTypeAndShape(results[i], &made), k_cannot_run);
        const auto info = owned(made, api_.ReleaseTensorTypeAndShapeInfo);
        size_t rank = 0, count = 0;
        ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        check(api_, api_.GetDimensionsCount(made, &rank), k_cannot_run);
        check(api_, api_.GetTensorShapeElementCount(made, &count), k_cannot_run);
        check(api_, api_.GetTensorElementType(made, &type), k_cannot_run);
        if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) throw Error(LR_ERROR_SESSION, outputs[i] + " is not float32");
        Output& output = found[outputs[i]];
        output.dims.resize(rank);
        check(api_, api_.GetDimensions(made, output.dims.data(), rank), k_cannot_run);
        void* data = nullptr;
        check(api_, api_.GetTensorMutableData(results[i], &data), k_cannot_run);
        output.values.assign(static_cast<float*>(data), static_cast<float*>(data) + count);
    }
    return found;
}

}  // namespace llama
