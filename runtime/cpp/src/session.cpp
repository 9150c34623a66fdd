#include "session.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <new>
#include <numeric>
#include <set>

#include "cores.h"
#include "errors.h"
#include "kernels.h"

namespace llama {
namespace {

const char* const k_cannot_run = "ONNX Runtime cannot run the graph";

std::string layer_name(std::string pattern, int64_t layer) {
    return pattern.replace(pattern.find("{i}"), 3, std::to_string(layer));
}

ONNXTensorElementDataType cache_type(const CacheSpec& cache) {
    return cache.half ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

Owned<OrtSessionOptions> session_options(const OrtApi& api, const std::string& folder, const Manifest& manifest, int threads) {
    OrtSessionOptions* made = nullptr;
    check(api, api.CreateSessionOptions(&made), "options");
    Owned<OrtSessionOptions> options = owned(made, api.ReleaseSessionOptions);
    const auto set = [&](OrtStatus* status) { check(api, status, "options"); };
    set(api.SetSessionLogSeverityLevel(made, ORT_LOGGING_LEVEL_ERROR));
    set(api.SetIntraOpNumThreads(made, threads > 0 ? threads : available_cores()));
    set(api.SetInterOpNumThreads(made, 1));
    // A memory pattern is kept for every input shape, and every decode has a new one.
    set(api.DisableMemPattern(made));
    set(api.AddSessionConfigEntry(made, "session.intra_op.allow_spinning", "0"));
    if (manifest.precision == "float32") {
        // The weights stay in the mapped file; packing would copy every one of them, for many seconds.
        set(api.AddSessionConfigEntry(made, "session.disable_prepacking", "1"));
    }
    namespace fs = std::filesystem;
    const fs::path data = fs::weakly_canonical(fs::path(folder) / manifest.external_data_folder);
    if (data != fs::weakly_canonical(fs::path(folder) / manifest.model_path).parent_path()) {
        set(api.AddSessionConfigEntry(made, "session.model_external_initializers_file_folder_path", data.c_str()));
    }
    return options;
}

using NameGetter = OrtStatus*(ORT_API_CALL*)(const OrtSession*, size_t, OrtAllocator*, char**);

std::set<std::string> names(const OrtApi& api, const OrtSession* session, size_t count, NameGetter get) {
    OrtAllocator* allocator = nullptr;
    check(api, api.GetAllocatorWithDefaultOptions(&allocator), k_cannot_run);
    std::set<std::string> found;
    for (size_t i = 0; i < count; ++i) {
        char* name = nullptr;
        check(api, get(session, i, allocator, &name), k_cannot_run);
        found.insert(name);
        allocator->Free(allocator, name);
    }
    return found;
}

std::string listed(const std::set<std::string>& all) {
    std::string text;
    size_t shown = 0;
    for (const std::string& name : all) {
        if (shown++ == 4) break;
        text += (text.empty() ? "" : ", ") + name;
    }
    return text;
}

}  // namespace

Session::Session(const std::string& folder, const Manifest& manifest, const SessionOptions& given)
    : api_(load_onnxruntime(given.library)),
      manifest_(manifest),
      chunk_tokens_(given.chunk_tokens),
      env_(nothing<OrtEnv>()),
      session_(nothing<OrtSession>()),
      memory_(nothing<OrtMemoryInfo>()) {
    if (manifest.soft_prompt || manifest.embed_tokens) {
        const char* what = manifest.soft_prompt ? "a learned prompt" : "a graph that takes embeddings";
        throw Error(LR_ERROR_MANIFEST, folder + ": has " + what + ", which the C++ runtime does not read", "use the Python runtime");
    }
    if (manifest.cache) past_ = cache_names(false), present_ = cache_names(true);
    const std::string path = folder + "/" + manifest.model_path;
    OrtEnv* env = nullptr;
    check(api_, api_.CreateEnv(ORT_LOGGING_LEVEL_ERROR, "llama_runtime", &env), path);
    env_ = owned(env, api_.ReleaseEnv);
    const auto load = [&](const OrtSessionOptions* options) {
        OrtSession* session = nullptr;
        check(api_, api_.CreateSession(env, path.c_str(), options, &session), path + ": ONNX Runtime cannot load it");
        session_ = owned(session, api_.ReleaseSession);
    };
    if (const auto kernels = find_kernels(manifest.precision)) {
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
    check_contract(path);
}

std::vector<std::string> Session::cache_names(bool present) const {
    const CacheSpec& cache = *manifest_.cache;
    std::vector<std::string> found;
    for (int64_t i = 0; i < cache.layers; ++i) {
        found.push_back(layer_name(present ? cache.present_key_name : cache.key_name, i));
        found.push_back(layer_name(present ? cache.present_value_name : cache.value_name, i));
    }
    return found;
}

// Refuses a graph that is not the one the manifest describes.
void Session::check_contract(const std::string& path) const {
    size_t inputs = 0, outputs = 0, optional = 0;
    check(api_, api_.SessionGetInputCount(session_.get(), &inputs), path);
    check(api_, api_.SessionGetOutputCount(session_.get(), &outputs), path);
    check(api_, api_.SessionGetOverridableInitializerCount(session_.get(), &optional), path);
    const auto required = names(api_, session_.get(), inputs, api_.SessionGetInputName);
    const auto results = names(api_, session_.get(), outputs, api_.SessionGetOutputName);
    const auto defaulted = names(api_, session_.get(), optional, api_.SessionGetOverridableInitializerName);
    std::set<std::string> wrong, missing;
    const auto lacks = [](const std::set<std::string>& all, const std::string& name) { return !all.count(name); };
    std::set<std::string> fed{"input_ids", "attention_mask", "position_ids"};
    fed.insert(past_.begin(), past_.end());
    for (const TensorSpec& spec : manifest_.inputs) {
        if (lacks(required, spec.name) || lacks(fed, spec.name)) wrong.insert(spec.name);
    }
    for (const std::string& name : required) {
        const auto is = [&](const TensorSpec& spec) { return spec.name == name; };
        if (std::none_of(manifest_.inputs.begin(), manifest_.inputs.end(), is)) wrong.insert(name);
    }
    for (const std::string& name : past_) {
        if (lacks(required, name)) wrong.insert(name);
    }
    if (!wrong.empty()) throw Error(LR_ERROR_SESSION, path + ": inputs differ from the manifest's: " + listed(wrong));
    for (const TensorSpec& spec : manifest_.outputs) {
        if (lacks(results, spec.name)) missing.insert(spec.name);
    }
    for (const std::string& name : present_) {
        if (lacks(results, name)) missing.insert(name);
    }
    for (const TensorSpec& spec : manifest_.optional_inputs) {
        if (lacks(defaulted, spec.name)) missing.insert(spec.name);
    }
    if (!missing.empty()) throw Error(LR_ERROR_SESSION, path + ": the manifest names " + listed(missing) + ", the graph does not");
}

bool Session::takes(const char* input) const {
    for (const auto* specs : {&manifest_.inputs, &manifest_.optional_inputs}) {
        for (const TensorSpec& spec : *specs) {
            if (spec.name == input) return true;
        }
    }
    return false;
}

Owned<OrtValue> Session::tensor(void* data, size_t bytes, const std::vector<int64_t>& dims, ONNXTensorElementDataType type) const {
    OrtValue* value = nullptr;
    static char nowhere;  // an empty tensor needs an address too
    check(api_, api_.CreateTensorWithDataAsOrtValue(memory_.get(), data ? data : &nowhere, bytes, dims.data(), dims.size(), type, &value),
          k_cannot_run);
    return owned(value, api_.ReleaseValue);
}

Buffer::Buffer(size_t bytes) : data(static_cast<uint8_t*>(std::calloc(bytes, 1)), std::free), bytes(bytes) {
    if (!data) throw std::bad_alloc();
}

size_t Session::row_bytes() const { return static_cast<size_t>(manifest_.cache->head_dim) * (manifest_.cache->half ? 2 : 4); }

void Session::check_capacity(size_t capacity) const {
    if (capacity < 1 || capacity > static_cast<size_t>(manifest_.max_positions)) {
        throw Error(LR_ERROR_PROMPT, "a cache of " + std::to_string(capacity) + " positions, the model has " + std::to_string(manifest_.max_positions));
    }
    // Products of a hostile manifest's numbers.
    if (capacity > std::numeric_limits<ptrdiff_t>::max() / row_bytes() / static_cast<size_t>(manifest_.cache->kv_heads)) throw std::bad_alloc();
}

std::unique_ptr<Cache> Session::new_cache(size_t capacity) const {
    if (!manifest_.cache) throw Error(LR_ERROR_MANIFEST, "the bundle's task is " + manifest_.task + ", which reads whole texts and has no cache");
    check_capacity(capacity);
    const CacheSpec& spec = *manifest_.cache;
    auto cache = std::make_unique<Cache>();
    cache->capacity = capacity;
    cache->ones.assign(capacity, 1);
    for (size_t i = 0; i < past_.size(); ++i) {
        if (spec.in_place) {
            cache->buffers.emplace_back(capacity * row_bytes() * static_cast<size_t>(spec.kv_heads));
        } else {
            cache->values.push_back(tensor(nullptr, 0, {1, spec.kv_heads, 0, spec.head_dim}, cache_type(spec)));
        }
    }
    return cache;
}

// Copies the first positions of every head, from rows that are `from` positions apart to such that are `to` apart.
void copy_positions(const void* source, size_t from, void* target, size_t to, size_t count, size_t heads, size_t row) {
    for (size_t head = 0; count && head < heads; ++head) {
        std::memcpy(static_cast<char*>(target) + head * to * row, static_cast<const char*>(source) + head * from * row, count * row);
    }
}

void Session::enlarge(Cache& cache, size_t capacity) const {
    check_capacity(capacity);
    const auto heads = static_cast<size_t>(manifest_.cache->kv_heads);
    std::vector<Buffer> larger;
    for (const Buffer& old : cache.buffers) {
        larger.emplace_back(capacity * row_bytes() * heads);
        copy_positions(old.data.get(), cache.capacity, larger.back().data.get(), capacity, cache.length, heads, row_bytes());
    }
    cache.step = Step();
    cache.ones.assign(capacity, 1);
    cache.buffers = std::move(larger);
    cache.capacity = capacity;
}

void Session::check_tokens(const Ids& tokens, const Cache& cache) const {
    if (tokens.empty()) throw Error(LR_ERROR_PROMPT, "no tokens, needs at least one");
    for (const int32_t token : tokens) {
        if (token < 0 || token >= manifest_.vocab_size) {
            throw Error(LR_ERROR_PROMPT, "token id " + std::to_string(token) + ", the vocabulary is 0 to " + std::to_string(manifest_.vocab_size - 1));
        }
    }
    // A write beyond the capacity would corrupt the cache.
    if (cache.length + tokens.size() > cache.capacity) {
        throw Error(LR_ERROR_PROMPT, std::to_string(tokens.size()) + " more tokens after " + std::to_string(cache.length) +
                                         ", the cache has room for " + std::to_string(cache.capacity));
    }
}

// Makes the step for runs of `tokens` new ones, unless it is there already.
void Session::bind(Cache& cache, size_t tokens) const {
    Step& step = cache.step;
    if (step.binding && step.tokens == tokens) return;
    step = Step();
    OrtIoBinding* binding = nullptr;
    check(api_, api_.CreateIoBinding(session_.get(), &binding), k_cannot_run);
    step.binding = owned(binding, api_.ReleaseIoBinding);
    step.ids.resize(tokens), step.positions.resize(tokens);
    const bool keeps = takes("num_logits_to_keep");
    const auto kept = static_cast<int64_t>(keeps ? 1 : tokens), T = static_cast<int64_t>(tokens);
    step.logits.resize(static_cast<size_t>(kept * manifest_.vocab_size));
    const auto input = [&](const char* name, std::vector<int64_t>& data, const std::vector<int64_t>& dims) {
        step.fixed.push_back(tensor(data.data(), data.size() * 8, dims, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64));
        check(api_, api_.BindInput(binding, name, step.fixed.back().get()), k_cannot_run);
    };
    const auto scalar = [&](const char* name, int64_t& data) {
        step.fixed.push_back(tensor(&data, 8, {1}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64));
        check(api_, api_.BindInput(binding, name, step.fixed.back().get()), k_cannot_run);
    };
    // Outputs are returned in the order they are bound: the logits, then the cache.
    step.fixed.push_back(tensor(step.logits.data(), step.logits.size() * 4, {1, kept, manifest_.vocab_size}, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT));
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
    step.tokens = tokens;  // the last thing: a step that failed half-way is made anew
}

// One run behind what the cache holds, which it advances; the logits are the step's.
void Session::run(const int32_t* tokens, size_t count, Cache& cache) const {
    bind(cache, count);
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
}

Logits Session::prefill(const Ids& tokens, Cache& cache) const {
    check_tokens(tokens, cache);
    // Every chunk is rotated for the whole text, so that the size of the chunks changes nothing.
    cache.rope_length = static_cast<int64_t>(cache.length + tokens.size());
    for (size_t at = 0, count = 0; at < tokens.size(); at += count) {
        count = std::min(chunk_tokens_, tokens.size() - at);
        run(tokens.data() + at, count, cache);
    }
    cache.rope_length = 0;
    const std::vector<float>& logits = cache.step.logits;
    return Logits(logits.end() - manifest_.vocab_size, logits.end());
}

Logits Session::decode(int32_t token, Cache& cache) const {
    check_tokens({token}, cache);
    cache.rope_length = 0;
    run(&token, 1, cache);
    return cache.step.logits;
}

void Session::truncate(Cache& cache, size_t length) const {
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
        copy_positions(from, cache.length, to, length, length, static_cast<size_t>(spec.kv_heads), row_bytes());
    }
    if (!shortened.empty()) cache.values = std::move(shortened);
    cache.length = length;
}

Outputs Session::run_text(const Ids& tokens, const std::vector<std::string>& outputs) const {
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
