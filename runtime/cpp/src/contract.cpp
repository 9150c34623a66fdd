#include "contract.h"

#include <set>

#include "errors.h"

namespace llama {
namespace {

using Names = std::set<std::string>;
using NameGetter = OrtStatus*(ORT_API_CALL*)(const OrtSession*, size_t, OrtAllocator*, char**);
using CountGetter = OrtStatus*(ORT_API_CALL*)(const OrtSession*, size_t*);

Names names_of(const OrtApi& api, const OrtSession* session, CountGetter count, NameGetter get) {
    OrtAllocator* allocator = nullptr;
    size_t size = 0;
    check(api, api.GetAllocatorWithDefaultOptions(&allocator), "names");
    check(api, count(session, &size), "names");
    Names found;
    for (size_t i = 0; i < size; ++i) {
        char* name = nullptr;
        check(api, get(session, i, allocator, &name), "names");
        found.insert(name);
        allocator->Free(allocator, name);
    }
    return found;
}

Names names_of(const std::vector<TensorSpec>& specs) {
    Names found;
    for (const TensorSpec& spec : specs) found.insert(spec.name);
    return found;
}

// Those that `all` lacks.
Names missing(const Names& all, const Names& wanted) {
    Names found;
    for (const std::string& name : wanted) {
        if (!all.count(name)) found.insert(name);
    }
    return found;
}

std::string listed(const Names& all) {
    std::string text;
    size_t shown = 0;
    for (const std::string& name : all) {
        if (shown++ == 4) break;
        text += (text.empty() ? "" : ", ") + name;
    }
    return text;
}

}  // namespace

std::vector<std::string> cache_names(const CacheSpec& cache, bool present) {
    std::vector<std::string> found;
    for (int64_t i = 0; i < cache.layers; ++i) {
        for (std::string name : {present ? cache.present_key_name : cache.key_name, present ? cache.present_value_name : cache.value_name}) {
            found.push_back(name.replace(name.find("{i}"), 3, std::to_string(i)));
        }
    }
    return found;
}

void check_contract(const OrtApi& api, const OrtSession* session, const Manifest& manifest, const std::string& path) {
    const Names inputs = names_of(api, session, api.SessionGetInputCount, api.SessionGetInputName);
    const Names outputs = names_of(api, session, api.SessionGetOutputCount, api.SessionGetOutputName);
    const Names optional = names_of(api, session, api.SessionGetOverridableInitializerCount, api.SessionGetOverridableInitializerName);
    const Names described = names_of(manifest.inputs);
    Names past, present = names_of(manifest.outputs);
    if (manifest.cache) {
        for (const std::string& name : cache_names(*manifest.cache, false)) past.insert(name);
        for (const std::string& name : cache_names(*manifest.cache, true)) present.insert(name);
    }
    Names fed{"input_ids", "attention_mask", "position_ids"};
    fed.insert(past.begin(), past.end());
    Names wrong = missing(described, inputs);
    for (Names more : {missing(inputs, described), missing(fed, described), missing(inputs, past)}) wrong.merge(more);
    if (!wrong.empty()) throw Error(LR_ERROR_SESSION, path + ": inputs differ from the manifest's: " + listed(wrong));
    Names absent = missing(outputs, present);
    absent.merge(missing(optional, names_of(manifest.optional_inputs)));
    if (!absent.empty()) throw Error(LR_ERROR_SESSION, path + ": the manifest names " + listed(absent) + ", the graph does not");
}

}  // namespace llama
